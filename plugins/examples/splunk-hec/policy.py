"""Events for Splunk's HTTP Event Collector (/services/collector/event): one JSON object each, one
after the other. The configuration is the index; empty: the token's default."""

import json

OPTIONAL = ("recipient", "record_id", "subject", "host", "enhanced", "text", "code")

index = ""


def init(config):
    global index
    index = config.strip()
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
