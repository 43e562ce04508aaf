// Campaigns: mail with a campaign field is bulk, in a lane of its own, by the relay of its kind,
// and gives up after a day without a notice of delay. A campaign without a way to unsubscribe
// (RFC 8058) is refused: large mailbox providers would count it against the whole tenant.

let relays, fallback;

export function init(config) {
  const { header = "X-Campaign", relay, by_prefix = {} } = JSON.parse(config);
  if (!relay) throw new Error("relay: name the relay for campaigns");
  fallback = relay;
  relays = Object.entries(by_prefix);
  return { name: "campaign", version: "0.1.0", headers: [header, "List-Unsubscribe"] };
}

export function decide({ headers }) {
  const value = (number) => headers.find((h) => h.name === number)?.value;
  const unsubscribe = value("List-Unsubscribe");
  const campaign = headers.find((h) => h.name !== "List-Unsubscribe")?.value.trim();
  if (!campaign) return "managed";
  if (!unsubscribe) {
    return { refuse: { code: 550, enhanced: "5.7.1", text: "a campaign needs a List-Unsubscribe field" } };
  }
  const [, relay] = relays.find(([prefix]) => campaign.startsWith(prefix)) ?? [null, fallback];
  return {
    otherwise: {
      managed: {
        class: "bulk",
        relay,
        lane: campaign.toLowerCase().replace(/[^a-z0-9.-]+/g, "-").slice(0, 64),
        expire_after: 24 * 3600,
        notify_delay_after: 0,
      },
    },
    tags: { campaign: campaign.slice(0, 60) },
  };
}
