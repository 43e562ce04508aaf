/* Warm-up of a new sending address: on the first day `start` messages to each site, and on every
 * day twice as many, up to `ceiling`. A site that defers one message in ten is held at the pace of
 * the day before, one that speaks of reputation is left alone for an hour. */
#define TG_SHAPING
#define TG_STATE
#include "tidegate.h"
#include "tidegate-json.h"

#define HOUR 3600000u
#define DAY (24 * HOUR)
/* Lanes that are remembered: the state has 64 KiB. */
#define MOST 150

static tg_u32 start, ceiling;

/* For each lane that was held back, for how many days. */
static struct { tg_text lane; tg_u32 days; } held[MOST];
static tg_u32 held_len;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    double first = tg_config_number(&config, TG("start"), 0), most = tg_config_number(&config, TG("ceiling"), 0);
    int good = first >= 1 && most >= first && most <= 1e9;
    tg_config_needs(&config, good, TG("start, ceiling: messages a day, start first"));
    if (good) start = (tg_u32)first, ceiling = (tg_u32)most;
    return tg_config_end(&config, (tg_descriptor){ TG("warm-up"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
}

/* A state that can't be read, of an earlier revision, is begun anew. */
static void read_state(tg_text state) {
    tg_json kept;
    tg_text fault;
    if (!tg_json_read(state, &kept, &fault) || kept.kind != TG_JSON_OBJECT) return;
    for (tg_json *lane = kept.first; lane && held_len < MOST; lane = lane->next) {
        if (lane->kind != TG_JSON_NUMBER || !(lane->number >= 0 && lane->number <= 30)) continue;
        held[held_len].lane = lane->name, held[held_len++].days = (tg_u32)lane->number;
    }
}

static tg_bytes write_state(void) {
    tg_buffer b = { 0 };
    tg_put(&b, TG("{"));
    for (tg_u32 n = 0; n < held_len; n++) {
        if (n) tg_put(&b, TG(","));
        tg_put_json(&b, held[n].lane);
        tg_put(&b, TG(":"));
        tg_put_number(&b, held[n].days);
    }
    tg_put(&b, TG("}"));
    return (tg_bytes){ b.at, b.len };
}

/* The days for which the lane was held back, one more where it is now. */
static tg_u32 days_held(const tg_lane_key *key, int more) {
    tg_buffer b = { 0 };
    tg_u32 n = 0;
    tg_put(&b, key->tenant);
    tg_put(&b, TG("/"));
    tg_put(&b, key->relay);
    tg_put(&b, TG("/"));
    tg_put(&b, key->site);
    tg_text lane = { (const char *)b.at, b.len };
    while (n < held_len && !tg_is(held[n].lane, lane)) n++;
    if (n == held_len) {
        if (!more || n == MOST) return 0;
        held[n].lane = lane, held_len++;
    }
    if (more && held[n].days < 30) held[n].days++;
    return held[n].days;
}

static const tg_reply_count *angry(const tg_window *recent) {
    for (tg_u32 n = 0; n < recent->replies.len; n++) {
        tg_text words = recent->replies.at[n].sample;
        if (tg_has(words, TG("reputation")) || tg_has(words, TG("blocked")) || tg_has(words, TG("spam")))
            return &recent->replies.at[n];
    }
    return 0;
}

static tg_lane_plan one(tg_u64 now, const tg_lane_state *lane) {
    static tg_u16 too_fast[] = { 421 };
    tg_lane_plan plan = { .limits = TG_LIMITS };
    tg_buffer cause = { 0 };
    if (lane->key.class == TG_TRANSACTIONAL) return plan;
    const tg_reply_count *reply = angry(&lane->recent);
    if (reply) {
        tg_put(&cause, TG("paused: "));
        tg_put(&cause, tg_first(reply->sample, 90));
        plan.limits.connections = 1;
        plan.limits.paused_until = (tg_option_u64){ 1, now + HOUR };
        plan.cause = (tg_option_text){ 1, { (const char *)cause.at, cause.len } };
        return plan;
    }
    int defers = lane->recent.attempts >= 10 && lane->recent.deferred * 10ull >= lane->recent.attempts;
    tg_u64 back = days_held(&lane->key, defers), age = 0;
    if (lane->sending_since.some && now > lane->sending_since.value) age = (now - lane->sending_since.value) / DAY;
    tg_u64 day = age > back ? age - back : 0;
    if (day > 30) day = 30;
    tg_u64 messages = (tg_u64)start << day;
    plan.limits.rate = (tg_option_rate){ 1, messages < ceiling ? (tg_u32)messages : ceiling, DAY };
    plan.limits.burst = 10, plan.limits.connections = 2, plan.limits.ttl = 300;
    plan.wake = (tg_option_trigger){ 1, { 100, 10, { too_fast, 1 } } };
    if (defers) {
        tg_put(&cause, TG("day "));
        tg_put_number(&cause, day + 1);
        tg_put(&cause, TG(" of the warm-up: the site defers"));
        plan.cause = (tg_option_text){ 1, { (const char *)cause.at, cause.len } };
    }
    return plan;
}

static tg_shaping policy_plan(tg_u64 now, tg_text state, const tg_lane_state *lanes, tg_u32 len) {
    tg_lane_plan *plans = tg_alloc(len * sizeof *plans, 8);
    read_state(state);
    for (tg_u32 n = 0; n < len; n++) plans[n] = one(now, &lanes[n]);
    return (tg_shaping){ 0, .ok = { { plans, len }, write_state() } };
}
