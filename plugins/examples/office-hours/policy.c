/* Office hours: bulk mail that comes in the evening, at night or at the weekend waits for the next
 * morning, so that replies find somebody there. Other mail goes at once. */
#define TG_ROUTING
#include "tidegate.h"
#include "tidegate-json.h"

#define HOUR 3600000LL
#define DAY (24 * HOUR)

/* Milliseconds. */
static long long opens, closes, offset;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    double from = tg_config_number(&config, TG("from"), 8), to = tg_config_number(&config, TG("to"), 18);
    double zone = tg_config_number(&config, TG("utc_offset_hours"), 0);
    tg_config_needs(&config, from >= 0 && from < to && to <= 24, TG("from, to: hours of a day, such as 8 and 18"));
    tg_config_needs(&config, zone >= -12 && zone <= 14, TG("utc_offset_hours: -12 to 14"));
    if (!config.error.len)
        opens = (long long)(from * HOUR), closes = (long long)(to * HOUR), offset = (long long)(zone * HOUR);
    return tg_config_end(&config, (tg_descriptor){ TG("office-hours"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
}

/* When the office opens on that day. */
static long long opening(long long local) { return local / DAY * DAY + opens; }

/* The first day of 1970 was a Thursday. */
static int weekend(long long local) { return (local / DAY + 3) % 7 >= 5; }

/* The first instant from `now` on that lies within office hours; at most 48 hours ahead, which is
 * the most that the gateway grants. */
static long long next_open(long long now) {
    long long local = now + offset, time = local % DAY;
    if (time >= closes) local = opening(local) + DAY;
    else if (time < opens) local = opening(local);
    while (weekend(local)) local = opening(local) + DAY;
    local -= offset;
    return local < now + 48 * HOUR ? local : now + 48 * HOUR;
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    tg_routing answer = { 0 }; /* Zero is: managed, all else the host's. */
    (void)why;
    if (message->class != TG_BULK) return answer;
    long long now = (long long)message->now, start = next_open(now);
    if (start > now) answer.ok.otherwise.managed.not_before = (tg_option_u64){ 1, (tg_u64)start };
    return answer;
}
