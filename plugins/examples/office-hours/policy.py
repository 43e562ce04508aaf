"""Office hours: bulk mail that comes in the evening, at night or at the weekend waits for the next
morning, so that replies find somebody there. Other mail goes at once."""

import json

HOUR = 3600 * 1000
DAY = 24 * HOUR
KEYS = ("from", "to", "utc_offset_hours")

# Milliseconds.
opens = closes = offset = 0


def init(config):
    global opens, closes, offset
    settings = json.loads(config)
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"{key}: no such key; there are {', '.join(KEYS)}")
    start, end = settings.get("from", 8), settings.get("to", 18)
    zone = settings.get("utc_offset_hours", 0)
    if not 0 <= start < end <= 24:
        raise ValueError("from, to: hours of a day, such as 8 and 18")
    if not -12 <= zone <= 14:
        raise ValueError("utc_offset_hours: -12 to 14")
    opens, closes, offset = int(start * HOUR), int(end * HOUR), int(zone * HOUR)
    return {"name": "office-hours", "version": "0.1.0"}


def decide(message):
    if message["class"] != "bulk":
        return "managed"
    now = message["now"]
    start = next_open(now)
    return {"managed": {"not_before": start if start > now else None}}


def next_open(now):
    """The first instant from `now` on that lies within office hours; at most 48 hours ahead, which
    is the most that the gateway grants."""
    local = now + offset
    time = local % DAY
    if time >= closes:
        local = opening(local) + DAY
    elif time < opens:
        local = opening(local)
    while weekend(local):
        local = opening(local) + DAY
    return min(local - offset, now + 48 * HOUR)


def opening(local):
    """When the office opens on that day."""
    return local // DAY * DAY + opens


def weekend(local):
    """The first day of 1970 was a Thursday."""
    return (local // DAY + 3) % 7 >= 5
