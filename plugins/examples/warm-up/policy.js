// Warm-up of a new sending address: on the first day `start` messages to each site, and on every
// day twice as many, up to `ceiling`. A site that defers one message in ten is held at the pace of
// the day before, one that speaks of reputation is left alone for an hour.

const DAY = 24 * 3600 * 1000;
let start, ceiling;

export function init(config) {
  ({ start, ceiling } = JSON.parse(config));
  if (!(start >= 1 && ceiling >= start)) throw new Error("start, ceiling: messages a day, start first");
  return { name: "warm-up", version: "0.1.0" };
}

// What is remembered is, for each lane, how many days it was held back.
export function plan(now, lanes, state) {
  const held = read(state);
  return { lanes: lanes.map((lane) => one(now, lane, held)), state: JSON.stringify(held) };
}

function read(state) {
  try {
    return JSON.parse(state || "{}");
  } catch {
    return {}; // Of an earlier revision.
  }
}

function one(now, lane, held) {
  if (lane.class === "transactional") return { limits: {} };
  const key = `${lane.tenant}/${lane.relay}/${lane.site}`;
  const { attempts, deferred, replies } = lane.recent;
  const angry = replies.find(({ code, sample }) => code >= 400 && /reputation|blocked|spam/i.test(sample));
  if (angry) {
    return { limits: { connections: 1, paused_until: now + 3600 * 1000 }, cause: `paused: ${angry.sample}`.slice(0, 300) };
  }
  const defers = attempts >= 10 && deferred * 10 >= attempts;
  if (defers) held[key] = Math.min((held[key] ?? 0) + 1, 30);
  const age = lane.sending_since === null ? 0 : Math.floor((now - lane.sending_since) / DAY);
  const day = Math.min(Math.max(0, age - (held[key] ?? 0)), 30);
  const messages = Math.min(start * 2 ** day, ceiling);
  return {
    limits: { rate: { messages, per_ms: DAY }, burst: 10, connections: 2, ttl: 300 },
    wake: { deferred_per_mille: 100, min_attempts: 10, codes: [421] },
    cause: defers ? `day ${day + 1} of the warm-up: the site defers` : null,
  };
}
