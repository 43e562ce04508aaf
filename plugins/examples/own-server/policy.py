"""Mail of the staff goes by the company's own server, so that it is in everybody's "Sent" folder
and signed there; when that server does not take it, by managed relay. All other mail, what the
CRM writes by itself, goes by managed relay at once."""

import json

KEYS = ("staff", "robots", "server")

staff = []
robots = []
server = None


def init(config):
    global staff, robots, server
    settings = json.loads(config)
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"{key}: no such key; there are {', '.join(KEYS)}")
    staff = [name.lower() for name in settings.get("staff", [])]
    robots = [name.lower() for name in settings.get("robots", [])]
    server = settings.get("server")
    if not staff:
        raise ValueError("staff: name addresses or domains whose mail goes by your server")
    if not server or not isinstance(server, str):
        raise ValueError("server: name a server that is registered for you")
    return {"name": "own-server", "version": "0.1.0"}


def decide(message):
    failed = message["passthrough_failed"]
    if failed:
        return {"otherwise": "managed", "tags": {"own-server": f"failed with {failed['code']}"}}
    if is_staff(message["sender"].lower()):
        return {"passthrough": {"server": server, "after_failure": "managed-relay"}}
    return "managed"


def is_staff(sender):
    if "@" not in sender:
        return False
    domain = sender.split("@")[-1]
    name = sender[: -len(domain) - 1]
    return name not in robots and (sender in staff or domain in staff)
