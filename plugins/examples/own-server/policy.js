// Mail of the staff goes by the company's own server, so that it is in everybody's "Sent" folder
// and signed there; when that server does not take it, by managed relay. All other mail, what the
// CRM writes by itself, goes by managed relay at once.

let staff, robots, server;

export function init(config) {
  const { staff: addresses = [], robots: names = [], server: office, ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there are staff, robots, server`);
  if (addresses.length === 0) throw new Error("staff: name addresses or domains whose mail goes by your server");
  if (typeof office !== "string" || !office) throw new Error("server: name a server that is registered for you");
  staff = new Set(addresses.map((name) => name.toLowerCase()));
  robots = new Set(names.map((name) => name.toLowerCase()));
  server = office;
  return { name: "own-server", version: "0.1.0" };
}

export function decide({ sender, passthrough_failed: failed }) {
  if (failed) return { otherwise: "managed", tags: { "own-server": `failed with ${failed.code}` } };
  if (isStaff(sender.toLowerCase())) return { passthrough: { server, after_failure: "managed-relay" } };
  return "managed";
}

function isStaff(sender) {
  const at = sender.lastIndexOf("@");
  if (at < 0) return false;
  const domain = sender.slice(at + 1);
  return !robots.has(sender.slice(0, at)) && (staff.has(sender) || staff.has(domain));
}
