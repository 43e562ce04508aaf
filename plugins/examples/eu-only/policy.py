"""Mail leaves by relays within the EU only. Mail with personal data of a special kind, marked by
a header field, does not leave for domains outside of a list at all."""

import json

KEYS = ("relay", "sensitive_header", "allowed")

relay = None
allowed = []


def init(config):
    global relay, allowed
    settings = json.loads(config)
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"{key}: no such key; there are {', '.join(KEYS)}")
    relay = settings.get("relay")
    if not relay or not isinstance(relay, str):
        raise ValueError("relay: name a relay that is granted to you")
    allowed = [domain.lower() for domain in settings.get("allowed", [])]
    if not allowed:
        raise ValueError("allowed: list the domains, or .suffixes, that may receive sensitive mail")
    header = settings.get("sensitive_header", "X-Sensitive")
    return {"name": "eu-only", "version": "0.1.0", "headers": [header]}


def decide(message):
    decision = {"otherwise": {"managed": {"relay": relay}}}
    if message["headers"]:
        recipients = message["recipients"]
        outside = [n for n in range(len(recipients)) if not may_receive(recipients[n]["domain"])]
        text = "sensitive data may not leave for this domain"
        refusal = {"refuse": {"code": 550, "enhanced": "5.7.1", "text": text}}
        if outside:
            decision["splits"] = [{"recipients": outside, "action": refusal}]
    return decision


def may_receive(domain):
    return any([domain == name or name.startswith(".") and domain.endswith(name) for name in allowed])
