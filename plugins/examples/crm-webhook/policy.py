"""What became of each mail, for the CRM that wrote it: one request with a JSON array per tenant and
batch, of the outcomes only, by the CRM's own record id. A batch may come twice: `id` is the same."""

import json

from tidegate import iso

OUTCOMES = ["delivered", "bounced", "expired", "cancelled", "delay-notified"]

wanted = OUTCOMES


def init(config):
    global wanted
    settings = json.loads(config or "{}")
    for key in settings:
        if key != "kinds":
            raise ValueError(f"{key}: no such key; there is kinds")
    wanted = settings.get("kinds") or OUTCOMES
    if not all([kind in OUTCOMES for kind in wanted]):
        raise ValueError("kinds: each is delivered, bounced, expired, cancelled or delay-notified")
    return {"name": "crm-webhook", "version": "0.1.0", "facts": ["tag.campaign"]}


def render(events):
    tenants = {}
    for event in events:
        if event["kind"] in wanted:
            tenants.setdefault(event["tenant"], []).append(outcome(event))
    return [payload(tenant, outcomes) for tenant, outcomes in tenants.items()]


def outcome(event):
    return {
        "id": event["seq"],
        "at": iso(event["at"]),
        "outcome": event["kind"],
        "hard": event["kind"] == "bounced" and event["code"] is not None and event["code"] >= 500,
        "record": event["record_id"],
        "message_id": event["message_id"],
        "recipient": event["recipient"],
        "campaign": event["facts"].get("tag.campaign"),
        "status": event["enhanced"],
        "reply": event["text"],
    }


def payload(tenant, outcomes):
    body = json.dumps({"tenant": tenant, "outcomes": outcomes}, separators=(",", ":"))
    return {"content_type": "application/json", "body": body}
