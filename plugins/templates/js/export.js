// NAME: one line of JSON for each bounce, nothing for the rest.

export function init() {
  return { name: "NAME", version: "0.1.0" };
}

export function render(events) {
  const lines = events
    .filter((event) => event.kind === "bounced")
    .map(({ seq, kind, recipient, code, text }) => JSON.stringify({ seq, kind, recipient, code, text }) + "\n");
  if (lines.length === 0) return [];
  return [{ content_type: "application/x-ndjson", body: lines.join("") }];
}
