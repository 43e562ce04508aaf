// Campaigns: mail with a campaign field is bulk, in a lane of its own, by the relay of its kind,
// and gives up after a day without a notice of delay. A campaign without a way to unsubscribe
// (RFC 8058) is refused: large mailbox providers would count it against the whole tenant.

let relays, fallback;

export function init(config) {
  const { header = "X-Campaign", relay, by_prefix = {}, ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there are header, relay, by_prefix`);
  if (typeof relay !== "string" || !relay) throw new Error("relay: name the relay for campaigns");
  fallback = relay;
  // The longest prefix counts.
  relays = Object.entries(by_prefix).sort(([a], [b]) => b.length - a.length);
  return { name: "campaign", version: "0.1.0", headers: [header, "List-Unsubscribe"] };
}

export function decide({ headers }) {
  const campaign = headers.find(({ name }) => name !== "List-Unsubscribe")?.value.trim();
  if (!campaign) return "managed";
  if (!headers.some(({ name }) => name === "List-Unsubscribe")) {
    return { refuse: { code: 550, enhanced: "5.7.1", text: "a campaign needs a List-Unsubscribe field" } };
  }
  const [, relay] = relays.find(([prefix]) => campaign.startsWith(prefix)) ?? [null, fallback];
  // Lower-case letters, digits and dots: a hyphen for all that is none of these.
  const lane = campaign.replace(/[^a-z0-9.]+/gi, "-").toLowerCase().slice(0, 64);
  return {
    otherwise: { managed: { class: "bulk", relay, lane, expire_after: 24 * 3600, notify_delay_after: 0 } },
    tags: { campaign: [...campaign].slice(0, 60).join("") },
  };
}
