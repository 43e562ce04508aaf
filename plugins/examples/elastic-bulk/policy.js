// Events for the bulk API of Elasticsearch and OpenSearch: an action line and a document for each.
// The document's id is the event's number, so a batch that is sent twice is stored once.

// What the document calls it, and what the event does; what is not there is left out.
const FIELDS = Object.entries({
  "@timestamp": "at",
  "event.action": "kind",
  "event.sequence": "seq",
  "organization.id": "tenant",
  "email.local_id": "message",
  "email.message_id": "message_id",
  "email.from.address": "sender",
  "email.to.address": "recipient",
  "email.subject": "subject",
  "destination.domain": "host",
  "smtp.code": "code",
  "smtp.enhanced": "enhanced",
  message: "text",
});
let index;

export function init(config) {
  const { index: name, ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there is index`);
  if (!/^[a-z0-9_.-]+$/.test(name ?? "")) {
    throw new Error("index: write the name of an index: lower-case letters, digits, '-', '_' and '.'");
  }
  index = name;
  return { name: "elastic-bulk", version: "0.1.0" };
}

export function render(events) {
  const lines = events.flatMap((event) => [{ create: { _index: index, _id: String(event.seq) } }, document(event)]);
  return [{ content_type: "application/x-ndjson", body: lines.map((line) => JSON.stringify(line) + "\n").join("") }];
}

function document(event) {
  return Object.fromEntries(FIELDS.filter(([, of]) => event[of] !== null).map(([name, of]) => [name, event[of]]));
}
