/* Relay by the sender's domain; "*" stands for all others. A domain that is not named, where there
 * is no "*", is refused: nobody sends in the name of a domain that was not set up. A notice, which
 * has no sender, goes as the tenant's mail goes without a policy. */
#define TG_ROUTING
#include "tidegate.h"
#include "tidegate-json.h"

static tg_facts relays;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    relays = tg_config_pairs(&config, TG("relays"));
    tg_config_needs(&config, relays.len, TG("relays: name at least one domain and its relay"));
    return tg_config_end(&config, (tg_descriptor){ TG("sender-domain"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
}

static tg_option_text relay_of(tg_text domain) {
    for (tg_u32 n = 0; n < relays.len; n++)
        if (tg_same(relays.at[n].name, domain)) return (tg_option_text){ 1, relays.at[n].value };
    return (tg_option_text){ 0 };
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    tg_routing answer = { 0 }; /* Zero is: managed, all else the host's. */
    tg_action *action = &answer.ok.otherwise;
    (void)why;
    if (!message->sender.len) return answer;
    tg_option_text relay = relay_of(tg_domain(message->sender));
    if (!relay.some) relay = relay_of(TG("*"));
    if (relay.some) {
        action->managed.relay = relay;
    } else {
        action->kind = TG_REFUSE;
        action->reply = (tg_reply){ 550, TG("5.7.1"), TG("no relay is set up for the sender's domain") };
    }
    return answer;
}
