// Relay by the sender's domain; "*" stands for all others. A domain that is not named, where there
// is no "*", is refused: nobody sends in the name of a domain that was not set up. A notice, which
// has no sender, goes as the tenant's mail goes without a policy.

let relays;

export function init(config) {
  const { relays: named = {}, ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there is relays`);
  relays = new Map(Object.entries(named).map(([domain, relay]) => [domain.toLowerCase(), relay]));
  if (relays.size === 0) throw new Error("relays: name at least one domain and its relay");
  return { name: "sender-domain", version: "0.1.0" };
}

export function decide({ sender }) {
  if (!sender) return "managed";
  const domain = sender.slice(sender.lastIndexOf("@") + 1).toLowerCase();
  const relay = relays.get(domain) ?? relays.get("*");
  if (relay) return { managed: { relay } };
  return { refuse: { code: 550, enhanced: "5.7.1", text: "no relay is set up for the sender's domain" } };
}
