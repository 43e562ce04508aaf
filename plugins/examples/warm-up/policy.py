"""Warm-up of a new sending address: on the first day `start` messages to each site, and on every
day twice as many, up to `ceiling`. A site that defers one message in ten is held at the pace of
the day before, one that speaks of reputation is left alone for an hour."""

import json

HOUR = 3600 * 1000
DAY = 24 * HOUR
KEYS = ("start", "ceiling")
ANGRY = ("reputation", "blocked", "spam")
# Lanes that are remembered: the state has 64 KiB.
MOST = 150

start = ceiling = 0


def init(config):
    global start, ceiling
    settings = json.loads(config)
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"{key}: no such key; there are {', '.join(KEYS)}")
    start, ceiling = settings.get("start", 0), settings.get("ceiling", 0)
    whole = isinstance(start, int) and isinstance(ceiling, int)
    if not whole or not 1 <= start <= ceiling <= 1000000000:
        raise ValueError("start, ceiling: messages a day, start first")
    return {"name": "warm-up", "version": "0.1.0"}


def plan(now, lanes, state):
    """What is remembered is, for each lane that was held back, for how many days."""
    held = read(state)
    plans = [one(now, lane, held) for lane in lanes]
    return {"lanes": plans, "state": json.dumps(held, separators=(",", ":"))}


def read(state):
    """There may be none yet, or that of an earlier revision: then anew."""
    try:
        kept = json.loads(state)
    except ValueError:
        return {}
    if not isinstance(kept, dict):
        return {}
    held = {}
    for lane, days in kept.items():
        if isinstance(days, int) and len(held) < MOST:
            held[lane] = days
    return held


def one(now, lane, held):
    if lane["class"] == "transactional":
        return {"limits": {}}
    recent = lane["recent"]
    for reply in recent["replies"]:
        sample = reply["sample"]
        if any([word in sample.lower() for word in ANGRY]):
            limits = {"connections": 1, "paused_until": now + HOUR}
            return {"limits": limits, "cause": "paused: " + sample[:90]}
    defers = recent["attempts"] >= 10 and recent["deferred"] * 10 >= recent["attempts"]
    age = 0 if lane["sending_since"] is None else (now - lane["sending_since"]) // DAY
    day = min(max(0, age - days_held(lane, held, defers)), 30)
    messages = min(start * 2 ** day, ceiling)
    return {
        "limits": {"rate": {"messages": messages, "per_ms": DAY}, "burst": 10, "connections": 2, "ttl": 300},
        "wake": {"deferred_per_mille": 100, "min_attempts": 10, "codes": [421]},
        "cause": f"day {day + 1} of the warm-up: the site defers" if defers else None,
    }


def days_held(lane, held, more):
    """The days for which the lane was held back, one more where it is now."""
    key = f"{lane['tenant']}/{lane['relay']}/{lane['site']}"
    days = held.get(key, 0)
    if not more or (key not in held and len(held) >= MOST):
        return days
    held[key] = min(days + 1, 30)
    return held[key]
