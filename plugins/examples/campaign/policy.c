/* Campaigns: mail with a campaign field is bulk, in a lane of its own, by the relay of its kind,
 * and gives up after a day without a notice of delay. A campaign without a way to unsubscribe
 * (RFC 8058) is refused: large mailbox providers would count it against the whole tenant. */
#define TG_ROUTING
#include "tidegate.h"
#include "tidegate-json.h"

static tg_text headers[2], relay;
static tg_facts by_prefix;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    headers[0] = tg_config_text(&config, TG("header"), TG("X-Campaign"));
    headers[1] = TG("List-Unsubscribe");
    relay = tg_config_text(&config, TG("relay"), TG(""));
    by_prefix = tg_config_pairs(&config, TG("by_prefix"));
    tg_config_needs(&config, relay.len, TG("relay: name the relay for campaigns"));
    return tg_config_end(&config, (tg_descriptor){ TG("campaign"), TG("0.1.0"), { headers, 2 }, { 0, 0 } });
}

/* Of the longest prefix. */
static tg_text relay_of(tg_text campaign) {
    tg_fact best = { TG(""), relay };
    for (tg_u32 n = 0; n < by_prefix.len; n++)
        if (by_prefix.at[n].name.len >= best.name.len && tg_starts(campaign, by_prefix.at[n].name)) best = by_prefix.at[n];
    return best.value;
}

/* Lower-case letters, digits and dots: a hyphen for all that is none of these. */
static tg_text lane_of(tg_text campaign) {
    static char lane[64];
    tg_u32 len = 0;
    for (tg_u32 n = 0; n < campaign.len && len < sizeof lane; n++) {
        char c = (char)tg_lower(campaign.at[n]);
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.') lane[len++] = c;
        else if (!len || lane[len - 1] != '-') lane[len++] = '-';
    }
    return (tg_text){ lane, len };
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    static tg_fact tags[1];
    tg_text campaign = tg_trim(tg_header_of(message, 0));
    tg_routing answer = { 0 }; /* Zero is: managed, all else the host's. */
    tg_action *action = &answer.ok.otherwise;
    (void)why;
    if (!campaign.len) return answer;
    if (!tg_header_of(message, 1).at) {
        action->kind = TG_REFUSE;
        action->reply = (tg_reply){ 550, TG("5.7.1"), TG("a campaign needs a List-Unsubscribe field") };
        return answer;
    }
    action->managed.class = TG_BULK;
    action->managed.relay = (tg_option_text){ 1, relay_of(campaign) };
    action->managed.lane = (tg_option_text){ 1, lane_of(campaign) };
    action->managed.expire_after = (tg_option_u32){ 1, 24 * 3600 };
    action->managed.notify_delay_after = (tg_option_u32){ 1, 0 };
    tags[0] = (tg_fact){ TG("campaign"), tg_first(campaign, 60) };
    answer.ok.tags = (tg_facts){ tags, 1 };
    return answer;
}
