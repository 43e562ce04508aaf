"""Campaigns: mail with a campaign field is bulk, in a lane of its own, by the relay of its kind,
and gives up after a day without a notice of delay. A campaign without a way to unsubscribe
(RFC 8058) is refused: large mailbox providers would count it against the whole tenant."""

import json

PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789.-"

relay = None
by_prefix = {}


def init(config):
    global relay, by_prefix
    settings = json.loads(config)
    relay = settings.get("relay")
    if not relay:
        raise ValueError("relay: name the relay for campaigns")
    by_prefix = settings.get("by_prefix", {})
    header = settings.get("header", "X-Campaign")
    return {"name": "campaign", "version": "0.1.0", "headers": [header, "List-Unsubscribe"]}


def decide(message):
    campaign, unsubscribe = "", False
    for header in message["headers"]:
        if header["name"] == "List-Unsubscribe":
            unsubscribe = True
        else:
            campaign = campaign or header["value"].strip()
    if not campaign:
        return "managed"
    if not unsubscribe:
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


def relay_of(campaign):
    for prefix, own in by_prefix.items():
        if campaign.startswith(prefix):
            return own
    return relay


def lane_of(campaign):
    """Lower-case letters, digits, dots and hyphens: a hyphen for all that is none of these."""
    lane = ""
    for c in campaign.lower():
        if c in PLAIN:
            lane += c
        elif not lane.endswith("-"):
            lane += "-"
    return lane[:64]
