/* NAME: mail with a campaign field goes as bulk mail in a lane of its own, all other mail by
 * managed relay on the gateway's terms. */
#define TG_ROUTING
#include "tidegate.h"
#include "tidegate-json.h"

/* Runs once, at the upload; what it leaves in static variables is there in every call. A mistake in
 * the configuration refuses the upload and is shown to the person who made it. */
static tg_setup policy_init(tg_text text) {
    static tg_text headers[1];
    tg_config config = tg_config_read(text);
    headers[0] = tg_config_text(&config, TG("campaign_header"), TG(""));
    tg_config_needs(&config, headers[0].len, TG("campaign_header: name the field, such as X-Campaign"));
    /* The host passes only the fields that are named here: number 0 is the campaign's. */
    return tg_config_end(&config, (tg_descriptor){ TG("NAME"), TG("0.1.0"), { headers, 1 }, { 0, 0 } });
}

/* Runs for each message, in a fresh copy of the memory that policy_init left. */
static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    static tg_fact tags[1];
    tg_text campaign = tg_header_of(message, 0);
    tg_routing answer = { 0 }; /* Zero is: managed, transactional, all else the host's. */
    tg_managed *managed = &answer.ok.otherwise.managed;
    (void)why;
    if (campaign.len) {
        managed->class = TG_BULK;
        managed->lane = (tg_option_text){ 1, tg_first(campaign, 16) };
        tags[0] = (tg_fact){ TG("campaign"), tg_first(campaign, 60) };
        answer.ok.tags = (tg_facts){ tags, 1 };
    }
    return answer;
}
