// What machines call things, in an operator's words. Rule: an unknown word is shown as it is.

export const OUTCOMES = {
  served: "in time", late: "late", rejected: "refused", expired: "expired waiting", failed: "failed", cancelled: "client left",
};

const REFUSALS = {
  "deadline-unreachable": "could not have been in time",
  "queue-full": "the model's queue was full",
  "tenant-queue-full": "the tenant's own part of the queue was full",
  "tenant-over-share": "no room, and the tenant had its share",
  "draining": "the sidecar was shutting down",
  "triton-unavailable": "Triton did not serve the model",
};

const WAITS = {
  "same-model": "the device ran earlier batches of the same model",
  "other-models": "the device ran batches of other models",
  "held": "held: for company, for a guaranteed stream, for Triton, or for its turn",
  "resent": "its merged batch had failed; sent again alone",
  "at-once": "nothing: sent at once (under 1 ms)",
};

export const TIMES = { window: "window", guard: "guard", reply: "reply", rtt: "round trip" };

const SERVERS = { ready: "ready", away: "Triton is away", draining: "shutting down" };

const known = (words, name) => (Object.hasOwn(words, name) ? words[name] : name);
export const outcome = (name) => known(OUTCOMES, name);
export const refusal = (name) => known(REFUSALS, name);
export const wait = (name) => known(WAITS, name);
export const time = (name) => known(TIMES, name);
export const server = (name) => known(SERVERS, name);

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export const count = (value) => Math.round(value).toLocaleString("en");

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(1)} %`;
}

export function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}
