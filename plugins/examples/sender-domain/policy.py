"""Relay by the sender's domain; "*" stands for all others. A domain that is not named, where there
is no "*", is refused: nobody sends in the name of a domain that was not set up. A notice, which
has no sender, goes as the tenant's mail goes without a policy."""

import json

relays = {}


def init(config):
    global relays
    settings = json.loads(config)
    for key in settings:
        if key != "relays":
            raise ValueError(f"{key}: no such key; there is relays")
    relays = {domain.lower(): relay for domain, relay in settings.get("relays", {}).items()}
    if not relays:
        raise ValueError("relays: name at least one domain and its relay")
    return {"name": "sender-domain", "version": "0.1.0"}


def decide(message):
    if not message["sender"]:
        return "managed"
    domain = message["sender"].split("@")[-1].lower()
    relay = relays.get(domain) or relays.get("*")
    if relay:
        return {"managed": {"relay": relay}}
    text = "no relay is set up for the sender's domain"
    return {"refuse": {"code": 550, "enhanced": "5.7.1", "text": text}}
