"""Relay by the sender's domain. The configuration has a line for each: a domain and the name of a
relay; "*" stands for all other domains. A domain that is not named, where there is no "*", is
refused: nobody sends in the name of a domain that was not set up."""

relays = {}


def init(config):
    for line in config.split("\n"):
        words = [word for word in line.replace("\t", " ").strip().split(" ") if word]
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2:
            raise ValueError("configuration: a line has a domain and no relay")
        relays[words[0].lower()] = words[1]
    if not relays:
        raise ValueError("configuration: write a line with a domain and a relay for each")
    return {"name": "sender-domain", "version": "0.1.0"}


def decide(message):
    domain = message["sender"].split("@")[-1].lower()
    relay = relays.get(domain) or relays.get("*")
    if relay:
        return {"managed": {"relay": relay}}
    text = "no relay is set up for the sender's domain"
    return {"refuse": {"code": 550, "enhanced": "5.7.1", "text": text}}
