// Events for Splunk's HTTP Event Collector (/services/collector/event): one JSON object each, one
// after the other, for an index or for the token's default.

const FIELDS = [
  "seq", "kind", "message", "tenant", "sender",
  "recipient", "record_id", "subject", "host", "enhanced", "text", "code",
];
let index;

export function init(config) {
  const { index: name, ...unknown } = JSON.parse(config || "{}");
  for (const key in unknown) throw new Error(`${key}: no such key; there is index`);
  if (typeof (name ?? "") !== "string") throw new Error("index: a text is needed");
  index = name || undefined; // What is undefined is no part of the JSON.
  return { name: "splunk-hec", version: "0.1.0" };
}

export function render(events) {
  if (events.length === 0) return [];
  return [{ content_type: "application/json", body: events.map(entry).join("") }];
}

function entry(event) {
  const told = FIELDS.filter((name) => event[name] !== null).map((name) => [name, event[name]]);
  return JSON.stringify({
    time: event.at / 1000,
    source: "tidegate",
    sourcetype: "tidegate:delivery",
    index,
    event: Object.fromEntries(told),
  });
}
