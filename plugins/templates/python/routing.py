"""NAME: mail with a campaign field goes as bulk mail in a lane of its own, all other mail by
managed relay on the gateway's terms."""

import json

campaign_header = None


def init(config):
    """Runs once, at the upload; what it leaves in global variables is there in every call. An
    exception refuses the upload and is shown to the person who made it."""
    global campaign_header
    campaign_header = json.loads(config).get("campaign_header")
    if not campaign_header:
        raise ValueError("campaign_header: name the field, such as X-Campaign")
    # The host passes only the fields that are named here.
    return {"name": "NAME", "version": "0.1.0", "headers": [campaign_header]}


def decide(message):
    """Runs for each message, in a fresh copy of the memory that init left."""
    campaign = message["headers"][0]["value"] if message["headers"] else ""
    if not campaign:
        return "managed"
    return {
        "otherwise": {"managed": {"class": "bulk", "lane": campaign[:16]}},
        "tags": {"campaign": campaign[:60]},
    }
