"""Warm-up of a new sending address: on the first day `start` messages to each site, and on every
day twice as many, up to `ceiling`. A site that defers one message in ten is held at the pace of
the day before, one that speaks of reputation is left alone for an hour."""

import json

DAY = 24 * 3600 * 1000
ANGRY = ("reputation", "blocked", "spam")

start = ceiling = 0


def init(config):
    global start, ceiling
    settings = json.loads(config)
    start, ceiling = settings.get("start", 0), settings.get("ceiling", 0)
    if start < 1 or ceiling < start:
        raise ValueError("start, ceiling: messages a day, start first")
    return {"name": "warm-up", "version": "0.1.0"}


def plan(now, lanes, state):
    """What is remembered is, for each lane, how many days it was held back."""
    held = read(state)
    plans = [one(now, lane, held) for lane in lanes]
    return {"lanes": plans, "state": json.dumps(held)}


def read(state):
    try:
        return json.loads(state or "{}")
    except ValueError:
        return {}  # Of an earlier revision.


def one(now, lane, held):
    if lane["class"] == "transactional":
        return {"limits": {}}
    key = f"{lane['tenant']}/{lane['relay']}/{lane['site']}"
    recent = lane["recent"]
    for reply in recent["replies"]:
        sample = reply["sample"]
        if reply["code"] >= 400 and any([word in sample.lower() for word in ANGRY]):
            limits = {"connections": 1, "paused_until": now + 3600 * 1000}
            return {"limits": limits, "cause": f"paused: {sample}"[:300]}
    defers = recent["attempts"] >= 10 and recent["deferred"] * 10 >= recent["attempts"]
    if defers:
        held[key] = min(held.get(key, 0) + 1, 30)
    age = 0 if lane["sending_since"] is None else (now - lane["sending_since"]) // DAY
    day = min(max(0, age - held.get(key, 0)), 30)
    messages = min(start * 2 ** day, ceiling)
    return {
        "limits": {"rate": {"messages": messages, "per_ms": DAY}, "burst": 10, "connections": 2, "ttl": 300},
        "wake": {"deferred_per_mille": 100, "min_attempts": 10, "codes": [421]},
        "cause": f"day {day + 1} of the warm-up: the site defers" if defers else None,
    }
