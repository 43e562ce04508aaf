"""Campaigns: mail with a campaign field is bulk, in a lane of its own, by the relay of its kind,
and gives up after a day without a notice of delay. A campaign without a way to unsubscribe
(RFC 8058) is refused: large mailbox providers would count it against the whole tenant."""

import json

KEYS = ("header", "relay", "by_prefix")
PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789."

header = None
relay = None
by_prefix = {}


def init(config):
    global header, relay, by_prefix
    settings = json.loads(config)
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"{key}: no such key; there are {', '.join(KEYS)}")
    relay = settings.get("relay")
    if not relay or not isinstance(relay, str):
        raise ValueError("relay: name the relay for campaigns")
    by_prefix = settings.get("by_prefix", {})
    header = settings.get("header", "X-Campaign")
    return {"name": "campaign", "version": "0.1.0", "headers": [header, "List-Unsubscribe"]}


def decide(message):
    campaign = value_of(message, header).strip()
    if not campaign:
        return "managed"
    if not value_of(message, "List-Unsubscribe"):
        text = "a campaign needs a List-Unsubscribe field"
        return {"refuse": {"code": 550, "enhanced": "5.7.1", "text": text}}
    terms = {
        "class": "bulk",
        "relay": relay_of(campaign),
        "lane": lane_of(campaign),
        "expire_after": 24 * 3600,
        "notify_delay_after": 0,
    }
    return {"otherwise": {"managed": terms}, "tags": {"campaign": campaign[:60]}}


def value_of(message, name):
    """Of the first field of that name."""
    for field in message["headers"]:
        if field["name"] == name:
            return field["value"]
    return ""


def relay_of(campaign):
    """Of the longest prefix."""
    best = ""
    for prefix in by_prefix:
        if campaign.startswith(prefix) and len(prefix) > len(best):
            best = prefix
    return by_prefix.get(best, relay)


def lane_of(campaign):
    """Lower-case letters, digits and dots: a hyphen for all that is none of these."""
    lane = ""
    for c in campaign.lower():
        if c in PLAIN:
            lane += c
        elif not lane.endswith("-"):
            lane += "-"
    return lane[:64]
