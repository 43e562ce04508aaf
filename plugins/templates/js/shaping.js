// NAME: a rate for every lane of bulk mail, and half of it while a site defers.

let perMinute;

export function init(config) {
  perMinute = JSON.parse(config).per_minute;
  if (!(perMinute >= 1)) throw new Error("per_minute: messages in every minute, at least 1");
  return { name: "NAME", version: "0.1.0" };
}

// What is returned as `state`, a text, is given back at the next call.
export function plan(now, lanes, state) {
  return { lanes: lanes.map(lane), state };
}

function lane({ class: trafficClass, recent }) {
  if (trafficClass === "transactional") return { limits: {} };
  const defers = recent.attempts >= 10 && recent.deferred * 10 >= recent.attempts;
  const messages = defers ? Math.max(1, Math.floor(perMinute / 2)) : perMinute;
  return {
    limits: { rate: { messages, per_ms: 60000 }, connections: 4 },
    cause: defers ? "the site defers one message in ten" : null,
  };
}
