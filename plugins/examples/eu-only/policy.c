/* Mail leaves by relays within the EU only. Mail with personal data of a special kind, marked by a
 * header field, does not leave for domains outside of a list at all. */
#define TG_ROUTING
#include "tidegate.h"
#include "tidegate-json.h"

static tg_text relay, headers[1];
static tg_texts allowed;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    relay = tg_config_text(&config, TG("relay"), TG(""));
    headers[0] = tg_config_text(&config, TG("sensitive_header"), TG("X-Sensitive"));
    allowed = tg_config_texts(&config, TG("allowed"));
    for (tg_u32 n = 0; n < allowed.len; n++) allowed.at[n] = tg_lowered(allowed.at[n]);
    tg_config_needs(&config, relay.len, TG("relay: name a relay that is granted to you"));
    tg_config_needs(&config, allowed.len, TG("allowed: list the domains, or .suffixes, that may receive sensitive mail"));
    return tg_config_end(&config, (tg_descriptor){ TG("eu-only"), TG("0.1.0"), { headers, 1 }, { 0, 0 } });
}

static int may_receive(tg_text domain) {
    for (tg_u32 n = 0; n < allowed.len; n++) {
        tg_text name = allowed.at[n];
        if (tg_is(domain, name) || (tg_starts(name, TG(".")) && tg_ends(domain, name))) return 1;
    }
    return 0;
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    static tg_split outside;
    tg_routing answer = { 0 }; /* Zero is: managed, all else the host's. */
    (void)why;
    answer.ok.otherwise.managed.relay = (tg_option_text){ 1, relay };
    if (!tg_header_of(message, 0).at) return answer;
    outside.action.kind = TG_REFUSE;
    outside.action.reply = (tg_reply){ 550, TG("5.7.1"), TG("sensitive data may not leave for this domain") };
    outside.recipients.at = tg_alloc(message->recipients.len * 4, 4);
    for (tg_u32 n = 0; n < message->recipients.len; n++)
        if (!may_receive(tg_recipient_domain(&message->recipients.at[n])))
            outside.recipients.at[outside.recipients.len++] = n;
    answer.ok.splits.at = &outside;
    answer.ok.splits.len = outside.recipients.len > 0;
    return answer;
}
