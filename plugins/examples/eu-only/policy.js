// Mail leaves by relays within the EU only. Mail with personal data of a special kind, marked by a
// header field, does not leave for domains outside of a list at all.

let relay, allowed;

export function init(config) {
  const { relay: name, sensitive_header = "X-Sensitive", allowed: domains = [], ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there are relay, sensitive_header, allowed`);
  if (typeof name !== "string" || !name) throw new Error("relay: name a relay that is granted to you");
  if (domains.length === 0) throw new Error("allowed: list the domains, or .suffixes, that may receive sensitive mail");
  relay = name;
  allowed = domains.map((domain) => domain.toLowerCase());
  return { name: "eu-only", version: "0.1.0", headers: [sensitive_header] };
}

export function decide({ recipients, headers }) {
  const otherwise = { managed: { relay } };
  if (headers.length === 0) return otherwise;
  const outside = [...recipients.keys()].filter((n) => !mayReceive(recipients[n].domain));
  if (outside.length === 0) return otherwise;
  const text = "sensitive data may not leave for this domain";
  return { otherwise, splits: [{ recipients: outside, action: { refuse: { code: 550, enhanced: "5.7.1", text } } }] };
}

function mayReceive(domain) {
  return allowed.some((name) => domain === name || (name.startsWith(".") && domain.endsWith(name)));
}
