// Warm-up of a new sending address: on the first day `start` messages to each site, and on every
// day twice as many, up to `ceiling`. A site that defers one message in ten is held at the pace of
// the day before, one that speaks of reputation is left alone for an hour.

const HOUR = 3600 * 1000;
const DAY = 24 * HOUR;
// Lanes that are remembered: the state has 64 KiB.
const MOST = 150;
let start, ceiling;

export function init(config) {
  const { start: first, ceiling: most, ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there are start, ceiling`);
  if (!(Number.isInteger(first) && Number.isInteger(most) && first >= 1 && most >= first && most <= 1e9)) {
    throw new Error("start, ceiling: messages a day, start first");
  }
  [start, ceiling] = [first, most];
  return { name: "warm-up", version: "0.1.0" };
}

// What is remembered is, for each lane that was held back, for how many days.
export function plan(now, lanes, state) {
  const held = read(state);
  const plans = lanes.map((lane) => one(now, lane, held));
  return { lanes: plans, state: JSON.stringify(Object.fromEntries(held)) };
}

function read(state) {
  try {
    return new Map(Object.entries(JSON.parse(state)).filter(([, days]) => Number.isInteger(days)).slice(0, MOST));
  } catch {
    return new Map(); // There is none yet, or that of an earlier revision.
  }
}

function one(now, lane, held) {
  if (lane.class === "transactional") return { limits: {} };
  const { attempts, deferred, replies } = lane.recent;
  const angry = replies.find(({ sample }) => /reputation|blocked|spam/i.test(sample));
  if (angry) {
    const words = [...angry.sample].slice(0, 90).join("");
    return { limits: { connections: 1, paused_until: now + HOUR }, cause: `paused: ${words}` };
  }
  const defers = attempts >= 10 && deferred * 10 >= attempts;
  const age = lane.sending_since === null ? 0 : Math.floor((now - lane.sending_since) / DAY);
  const day = Math.min(Math.max(0, age - daysHeld(lane, held, defers)), 30);
  const messages = Math.min(start * 2 ** day, ceiling);
  return {
    limits: { rate: { messages, per_ms: DAY }, burst: 10, connections: 2, ttl: 300 },
    wake: { deferred_per_mille: 100, min_attempts: 10, codes: [421] },
    cause: defers ? `day ${day + 1} of the warm-up: the site defers` : null,
  };
}

// The days for which the lane was held back, one more where it is now.
function daysHeld({ tenant, relay, site }, held, more) {
  const key = `${tenant}/${relay}/${site}`;
  const days = held.get(key) ?? 0;
  if (!more || (!held.has(key) && held.size >= MOST)) return days;
  held.set(key, Math.min(days + 1, 30));
  return held.get(key);
}
