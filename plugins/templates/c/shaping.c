/* NAME: a rate for every lane of bulk mail, and half of it while a site defers. */
#define TG_SHAPING
#include "tidegate.h"
#include "tidegate-json.h"

static tg_u32 per_minute;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    double number = tg_config_number(&config, TG("per_minute"), 0);
    tg_config_needs(&config, number >= 1 && number <= 1e9, TG("per_minute: messages in every minute, at least 1"));
    if (!config.error.len) per_minute = (tg_u32)number;
    return tg_config_end(&config, (tg_descriptor){ TG("NAME"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
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
