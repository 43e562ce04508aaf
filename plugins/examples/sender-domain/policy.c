/* Relay by the sender's domain. The configuration has a line for each: a domain and the name
 * of a relay; "*" stands for all other domains. A domain that is not named, where there is no
 * "*", is refused: nobody sends in the name of a domain that was not set up. */
#define TG_ROUTING
#include "tidegate.h"

#define MOST 256

static struct { tg_text domain, relay; } rules[MOST];
static tg_u32 rules_len;

/* The next word of the line; empty at its end. */
static tg_text word(tg_text *rest) {
    tg_u32 n = 0;
    while (rest->len && (rest->at[0] == ' ' || rest->at[0] == '\t')) rest->at++, rest->len--;
    while (n < rest->len && rest->at[n] != ' ' && rest->at[n] != '\t' && rest->at[n] != '\r') n++;
    tg_text found = { rest->at, n };
    rest->at += n, rest->len -= n;
    return found;
}

static tg_setup policy_init(tg_text config) {
    while (config.len) {
        tg_u32 n = 0;
        while (n < config.len && config.at[n] != '\n') n++;
        tg_text line = { config.at, n };
        tg_u32 skip = n < config.len ? n + 1 : n;
        config.at += skip, config.len -= skip;
        tg_text domain = word(&line), relay = word(&line);
        if (!domain.len || domain.at[0] == '#') continue;
        if (!relay.len) return (tg_setup){ 1, .error = TG("configuration: a line has a domain and no relay") };
        if (rules_len == MOST) return (tg_setup){ 1, .error = TG("configuration: at most 256 domains") };
        rules[rules_len].domain = domain, rules[rules_len++].relay = relay;
    }
    if (!rules_len) return (tg_setup){ 1, .error = TG("configuration: write a line with a domain and a relay for each") };
    return (tg_setup){ 0, .ok = { TG("sender-domain"), TG("0.1.0"), { 0, 0 }, { 0, 0 } } };
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    tg_text domain = tg_domain(message->sender);
    tg_routing answer = { 0 };
    tg_action *action = &answer.ok.otherwise;
    (void)why;
    for (tg_u32 n = 0; n < rules_len; n++) {
        if (!tg_same(rules[n].domain, domain) && !tg_same(rules[n].domain, TG("*"))) continue;
        action->managed.class = message->class;
        action->managed.relay = (tg_option_text){ 1, rules[n].relay };
        return answer;
    }
    action->kind = TG_REFUSE;
    action->reply = (tg_reply){ 550, TG("5.7.1"), TG("no relay is set up for the sender's domain") };
    return answer;
}
