/* NAME: a rate for every lane of bulk mail, and half of it while a site defers. The
 * configuration is the number of messages in every minute. */
#define TG_SHAPING
#include "tidegate.h"

static tg_u32 per_minute;

static tg_setup policy_init(tg_text config) {
    long long number = tg_number(tg_trim(config));
    if (number < 1 || number > 1000000)
        return (tg_setup){ 1, .error = TG("configuration: write the messages in every minute, 1 to 1000000") };
    per_minute = (tg_u32)number;
    return (tg_setup){ 0, .ok = { TG("NAME"), TG("0.1.0"), { 0, 0 }, { 0, 0 } } };
}

static tg_lane_plan policy_lane(tg_u64 now, const tg_lane_state *lane) {
    tg_lane_plan plan = { .limits = TG_LIMITS };
    tg_u32 messages = per_minute;
    (void)now;
    if (lane->key.class == TG_TRANSACTIONAL) return plan;
    if (lane->recent.attempts >= 10 && lane->recent.deferred * 10 >= lane->recent.attempts) {
        messages = messages > 1 ? messages / 2 : 1;
        plan.cause = TG_SOME("the site defers one message in ten");
    }
    plan.limits.rate = (tg_option_rate){ 1, messages, 60000 };
    plan.limits.connections = 4;
    return plan;
}
