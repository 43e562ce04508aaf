// Office hours: bulk mail that comes in the evening, at night or at the weekend waits for the next
// morning, so that replies find somebody there. Other mail goes at once.

const HOUR = 3600 * 1000;
let from, to, offset;

export function init(config) {
  ({ from = 8, to = 18, utc_offset_hours: offset = 0 } = JSON.parse(config));
  if (!(from >= 0 && from < to && to <= 24)) throw new Error("from, to: hours of a day, such as 8 and 18");
  if (!(offset >= -12 && offset <= 14)) throw new Error("utc_offset_hours: -12 to 14");
  return { name: "office-hours", version: "0.1.0" };
}

export function decide({ class: trafficClass, now }) {
  if (trafficClass !== "bulk") return "managed";
  const open = next(now);
  return { managed: { not_before: open > now ? open : null } };
}

// The first instant from `now` on that lies within office hours; at most 48 hours ahead, which is
// the most that the gateway grants.
function next(now) {
  let local = new Date(now + offset * HOUR);
  const hour = local.getUTCHours();
  if (hour >= to) local = new Date(startOf(local) + 24 * HOUR);
  else if (hour < from) local = new Date(startOf(local));
  while (local.getUTCDay() === 0 || local.getUTCDay() === 6) local = new Date(startOf(local) + 24 * HOUR);
  return Math.min(local.getTime() - offset * HOUR, now + 48 * HOUR);
}

// When the office opens on that day.
function startOf(local) {
  return Date.UTC(local.getUTCFullYear(), local.getUTCMonth(), local.getUTCDate(), from);
}
