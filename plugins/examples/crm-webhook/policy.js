// What became of each mail, for the CRM that wrote it: one request with a JSON array per tenant and
// batch, of the outcomes only, by the CRM's own record id. A batch may come twice: `id` is the same.

const OUTCOMES = ["delivered", "bounced", "expired", "cancelled", "delay-notified"];
let wanted;

export function init(config) {
  const { kinds = [], ...unknown } = JSON.parse(config || "{}");
  for (const key in unknown) throw new Error(`${key}: no such key; there is kinds`);
  if (!kinds.every((kind) => OUTCOMES.includes(kind))) {
    throw new Error("kinds: each is delivered, bounced, expired, cancelled or delay-notified");
  }
  wanted = new Set(kinds.length ? kinds : OUTCOMES);
  return { name: "crm-webhook", version: "0.1.0", facts: ["tag.campaign"] };
}

export function render(events) {
  const tenants = new Map();
  for (const event of events) {
    if (!wanted.has(event.kind)) continue;
    if (!tenants.has(event.tenant)) tenants.set(event.tenant, []);
    tenants.get(event.tenant).push({
      id: event.seq,
      at: new Date(event.at).toISOString(),
      outcome: event.kind,
      hard: event.kind === "bounced" && event.code >= 500,
      record: event.record_id,
      message_id: event.message_id,
      recipient: event.recipient,
      campaign: event.facts["tag.campaign"] ?? null,
      status: event.enhanced,
      reply: event.text,
    });
  }
  return [...tenants].map(([tenant, outcomes]) => ({
    content_type: "application/json",
    body: JSON.stringify({ tenant, outcomes }),
  }));
}
