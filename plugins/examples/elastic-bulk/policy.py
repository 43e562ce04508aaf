"""Events for the bulk API of Elasticsearch and OpenSearch: an action line and a document for each.
The document's id is the event's number, so a batch that is sent twice is stored once."""

import json

PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789-_."
# What the document calls it, and what the event does; what is not there is left out.
FIELDS = {
    "@timestamp": "at",
    "event.action": "kind",
    "event.sequence": "seq",
    "organization.id": "tenant",
    "email.local_id": "message",
    "email.message_id": "message_id",
    "email.from.address": "sender",
    "email.to.address": "recipient",
    "email.subject": "subject",
    "destination.domain": "host",
    "smtp.code": "code",
    "smtp.enhanced": "enhanced",
    "message": "text",
}

index = None


def init(config):
    global index
    settings = json.loads(config)
    for key in settings:
        if key != "index":
            raise ValueError(f"{key}: no such key; there is index")
    index = settings.get("index", "")
    if not index or not all([c in PLAIN for c in index]):
        raise ValueError("index: write the name of an index: lower-case letters, digits, '-', '_' and '.'")
    return {"name": "elastic-bulk", "version": "0.1.0"}


def render(events):
    lines = []
    for event in events:
        lines.append(compact({"create": {"_index": index, "_id": str(event["seq"])}}))
        document = {name: event[of] for name, of in FIELDS.items() if event[of] is not None}
        lines.append(compact(document))
    return [{"content_type": "application/x-ndjson", "body": "".join(lines)}]


def compact(value):
    return json.dumps(value, separators=(",", ":")) + "\n"
