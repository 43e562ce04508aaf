"""Events for Splunk's HTTP Event Collector (/services/collector/event): one JSON object each, one
after the other, for an index or for the token's default."""

import json

OPTIONAL = ("recipient", "record_id", "subject", "host", "enhanced", "text", "code")

index = None


def init(config):
    global index
    settings = json.loads(config or "{}")
    for key in settings:
        if key != "index":
            raise ValueError(f"{key}: no such key; there is index")
    index = settings.get("index", "")
    if not isinstance(index, str):
        raise ValueError("index: a text is needed")
    return {"name": "splunk-hec", "version": "0.1.0"}


def render(events):
    body = "".join([entry(event) for event in events])
    return [{"content_type": "application/json", "body": body}] if body else []


def entry(event):
    told = {name: event[name] for name in ("seq", "kind", "message", "tenant", "sender")}
    for name in OPTIONAL:
        if event[name] is not None:
            told[name] = event[name]
    around = {"time": event["at"] / 1000, "source": "tidegate", "sourcetype": "tidegate:delivery"}
    if index:
        around["index"] = index
    around["event"] = told
    return json.dumps(around, separators=(",", ":"))
