/* NAME: mail with a campaign field goes as bulk mail in a lane of its own, all other mail by
 * managed relay on the gateway's terms. The configuration is the field's name. */
#define TG_ROUTING
#include "tidegate.h"

static tg_setup policy_init(tg_text config) {
    static tg_text headers[1];
    headers[0] = tg_trim(config);
    if (!headers[0].len)
        return (tg_setup){ 1, .error = TG("configuration: write the name of the campaign field, such as X-Campaign") };
    /* The host passes only the fields that are named here: number 0 is the campaign's. */
    return (tg_setup){ 0, .ok = { TG("NAME"), TG("0.1.0"), { headers, 1 }, { 0, 0 } } };
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    static tg_fact tags[1];
    tg_text campaign = tg_header_of(message, 0);
    tg_routing answer = { 0 }; /* Zero is: managed, transactional, all else the host's. */
    tg_managed *managed = &answer.ok.otherwise.managed;
    (void)why;
    if (campaign.at) {
        managed->class = TG_BULK;
        managed->lane = (tg_option_text){ 1, tg_cut(campaign, 64) };
        tags[0] = (tg_fact){ TG("campaign"), tg_cut(campaign, 200) };
        answer.ok.tags = (tg_facts){ tags, 1 };
    }
    return answer;
}
