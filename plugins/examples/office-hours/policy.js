// Office hours: bulk mail that comes in the evening, at night or at the weekend waits for the next
// morning, so that replies find somebody there. Other mail goes at once.

const HOUR = 3600 * 1000;
const DAY = 24 * HOUR;

// Milliseconds.
let opens, closes, offset;

export function init(config) {
  const { from = 8, to = 18, utc_offset_hours: zone = 0, ...unknown } = JSON.parse(config);
  for (const key in unknown) throw new Error(`${key}: no such key; there are from, to, utc_offset_hours`);
  if (!(from >= 0 && from < to && to <= 24)) throw new Error("from, to: hours of a day, such as 8 and 18");
  if (!(zone >= -12 && zone <= 14)) throw new Error("utc_offset_hours: -12 to 14");
  [opens, closes, offset] = [from, to, zone].map((hours) => Math.trunc(hours * HOUR));
  return { name: "office-hours", version: "0.1.0" };
}

export function decide({ class: trafficClass, now }) {
  if (trafficClass !== "bulk") return "managed";
  const start = nextOpen(now);
  return { managed: { not_before: start > now ? start : null } };
}

// The first instant from `now` on that lies within office hours; at most 48 hours ahead, which is
// the most that the gateway grants.
function nextOpen(now) {
  let local = now + offset;
  const time = local % DAY;
  if (time >= closes) local = opening(local) + DAY;
  else if (time < opens) local = opening(local);
  while (weekend(local)) local = opening(local) + DAY;
  return Math.min(local - offset, now + 48 * HOUR);
}

const day = (local) => Math.floor(local / DAY);
// When the office opens on that day.
const opening = (local) => day(local) * DAY + opens;
// The first day of 1970 was a Thursday.
const weekend = (local) => (day(local) + 3) % 7 >= 5;
