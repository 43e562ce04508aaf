"""NAME: a rate for every lane of bulk mail, and half of it while a site defers."""

import json

per_minute = 0


def init(config):
    global per_minute
    per_minute = json.loads(config).get("per_minute", 0)
    if per_minute < 1:
        raise ValueError("per_minute: messages in every minute, at least 1")
    return {"name": "NAME", "version": "0.1.0"}


def plan(now, lanes, state):
    """What is returned as `state`, a text, is given back at the next call."""
    return {"lanes": [one(lane) for lane in lanes], "state": state}


def one(lane):
    if lane["class"] == "transactional":
        return {"limits": {}}
    recent = lane["recent"]
    defers = recent["attempts"] >= 10 and recent["deferred"] * 10 >= recent["attempts"]
    messages = max(1, per_minute // 2) if defers else per_minute
    return {
        "limits": {"rate": {"messages": messages, "per_ms": 60000}, "connections": 4},
        "cause": "the site defers one message in ten" if defers else None,
    }
