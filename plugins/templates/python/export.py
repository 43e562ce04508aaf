"""NAME: one line of JSON for each bounce, nothing for the rest."""

import json

FIELDS = ("seq", "kind", "recipient", "code", "text")


def init(config):
    return {"name": "NAME", "version": "0.1.0"}


def render(events):
    lines = []
    for event in events:
        if event["kind"] == "bounced":
            line = {name: event[name] for name in FIELDS}
            lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    if not lines:
        return []
    return [{"content_type": "application/x-ndjson", "body": "".join(lines)}]
