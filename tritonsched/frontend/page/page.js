// The page. Rule: a frame comes in, everything is drawn from it; nothing is kept but the last one.
// The form of a frame: tritonsched/proxy/frame.py.

import { Chart, colour, fromZero, gantt, modelColour } from "./charts.js";
import { element, fill, list, setText } from "./tables.js";
import * as words from "./words.js";

const AGAIN_MS = 2000;
const HISTORY_S = 180;
const IN_PICTURE = 0.98; // of predicted and measured times; few hiccups must not hide the others
const TEXT_MAX = 4_000_000; // of one frame; more is no sidecar

const at = (id) => document.getElementById(id);
const seconds = (value) => (value === 0 ? "now" : `${value} s`);
const tick = (value) => value.toLocaleString("en");
const lines = { x: seconds, y: tick, xRange: () => [-HISTORY_S, 0] };
const charts = {
  rates: new Chart(at("rates"), { ...lines, yRange: fromZero(1) }),
  waiting: new Chart(at("waiting"), { ...lines, yRange: fromZero(4) }),
  tuning: new Chart(at("tuning"), { ...lines, yRange: fromZero(0.5) }),
  prediction: new Chart(at("prediction"), {
    x: (v) => `${v} ms`, y: (v) => `${v} ms`, xRange: fromZero(1), yRange: fromZero(1),
  }),
};
let last = null; // the last frame
let again = () => {}; // ends the pause before the next try

// -- what is drawn ------------------------------------------------------------------------------

function draw(frame) {
  const order = new Map(frame.models.rows.map((row, index) => [row.name, index]));
  const colourOf = (model) => modelColour(order.get(model) ?? 15);
  const recent = `last ${frame.sidecar.recent_s} s`;
  for (const id of ["classes-span", "models-span", "tenants-span", "waits-span"]) setText(at(id), recent);
  head(frame.sidecar);
  totals(frame.totals, frame.devices.rows, recent);
  history(frame.history, [...order.keys()], colourOf);
  setText(at("devices-span"), `last ${frame.devices.chart_s} s, coloured by model; share of it that the device worked`);
  gantt(at("devices"), frame.devices, colourOf);
  classes(frame.classes);
  tenants(frame.tenants);
  models(frame.models, colourOf);
  reasons(frame.waits, frame.refusals);
  prediction(frame.prediction, colourOf);
  tuning(frame.tuning, frame.changes);
  reservations(frame.reservations);
}

function head(sidecar) {
  const good = sidecar.server === "ready" && !sidecar.why_not_ready;
  show(sidecar.why_not_ready || words.server(sidecar.server), good ? "good" : "bad");
  setText(at("about"), `${sidecar.version} · rule ${sidecar.rule} · up ${words.duration(sidecar.uptime_s)}`);
  at("notices").hidden = sidecar.notices.length === 0;
  list(at("notices"), sidecar.notices, () => element("li"), setText);
}

function show(text, className) {
  setText(at("state"), text);
  at("state").className = `state ${className}`;
}

function totals(sum, devices, recent) {
  const missed = sum.per_s.late + sum.per_s.expired + sum.per_s.failed;
  const busy = devices.length ? devices.reduce((total, one) => total + one.busy_share, 0) / devices.length : null;
  const boxes = [
    [words.number(sum.requests_per_s), "requests/s", recent],
    [words.number(sum.per_s.served), "in time/s", recent],
    [words.percent(sum.in_time_share), "of all in time", recent],
    [words.number(sum.per_s.rejected), "refused/s", recent],
    [words.number(missed), "late or lost/s", `late, expired or failed, ${recent}`],
    [words.count(sum.waiting), "waiting now", "requests in the queues"],
    [words.count(sum.batches_out), "batches out", "sent to Triton and not back"],
    [words.percent(busy), "devices busy", "mean over the devices"],
    [words.count(sum.since_start.served), "in time, total", "requests since the start"],
  ];
  const box = () => {
    const made = element("div", "total");
    made.append(element("b"), element("span"));
    return made;
  };
  list(at("totals"), boxes, box, (target, [value, text, title]) => {
    setText(target.children[0], value);
    setText(target.children[1], text);
    target.title = title;
  });
}

function history({ outcomes, times, points }, models, colourOf) {
  const ends = points.slice(1);
  const x = ends.map(([at_s]) => at_s);
  const rate = (index) => ends.map((point, i) => (point[1][index] - points[i][1][index]) / Math.max(0.001, point[0] - points[i][0]));
  const rates = outcomes.map((_, index) => rate(index));
  charts.rates.show(outcomes.map((name) => ({ label: name, stroke: colour(name) })), [x, ...rates]);
  key("rates-key", outcomes.map((name, index) => [colour(name), words.outcome(name), rates[index].at(-1)]));
  charts.waiting.show(
    models.map((name) => ({ label: name, stroke: colourOf(name) })),
    [x, ...models.map((name) => ends.map(([, , waiting]) => waiting[name] ?? 0))],
  );
  const set = times.map((_, index) => ends.map((point) => point[3][index] / 1e6));
  charts.tuning.show(times.map((name, i) => ({ label: name, stroke: modelColour(i) })), [x, ...set]);
  key("tuning-key", times.map((name, i) => [modelColour(i), words.time(name), set[i].at(-1)]));
}

function key(id, entries) {
  const entry = () => {
    const made = element("span");
    made.append(element("span", "dot"), element("span"), element("b"));
    return made;
  };
  list(at(id), entries, entry, (target, [stroke, name, value]) => {
    target.children[0].style.background = stroke;
    setText(target.children[1], `${name} `);
    setText(target.children[2], words.number(value));
  });
}

const plain = (head, text) => ({ head, text: (row) => words.number(text(row)) });
const name = (head, dot) => ({ head, text: (row) => row.name, title: (row) => row.name, dot });

const losses = ["late", "rejected", "expired", "failed", "cancelled"].map((one) => (
  { head: words.outcome(one), text: (row) => words.count(row.recent[one]) }));

function classes({ rows, hidden }) {
  const columns = [
    name("class"),
    { head: "deadline, ms", text: (row) => (row.deadline_ms === null ? "none" : words.count(row.deadline_ms)) },
    plain("worth", (row) => row.weight),
    plain("requests /s", (row) => row.per_s),
    { head: "in time", text: (row) => words.percent(row.in_time_share), bar: (row) => row.in_time_share },
    ...losses,
  ];
  fill(at("classes"), columns, rows, { hidden });
}

function tenants({ rows, hidden }) {
  at("tenants-panel").hidden = rows.length < 2;
  fill(at("tenants"), [
    name("tenant"),
    plain("worth", (row) => row.weight),
    plain("fairness, times", (row) => row.boost),
    { head: "its share", text: (row) => words.percent(row.share) },
    { head: "waiting", text: (row) => words.count(row.waiting) },
    plain("requests /s", (row) => row.per_s),
    { head: "in time", text: (row) => words.percent(row.in_time_share), bar: (row) => row.in_time_share },
    ...losses,
  ], rows, { hidden });
}

function models({ rows, hidden }, colourOf) {
  const columns = [
    name("model", (row) => colourOf(row.name)),
    { head: "waiting", text: (row) => words.count(row.waiting) },
    plain("batches /s", (row) => row.batches_per_s),
    plain("requests /batch", (row) => row.requests_per_batch),
    plain("rows /batch", (row) => row.rows_per_batch),
    plain("predicted ms", (row) => row.expected_ms),
    plain("measured ms", (row) => row.measured_ms),
  ];
  fill(at("models"), columns, rows, { hidden, none: "Triton serves no model" });
}

function reasons(waits, refusals) {
  const total = waits.reduce((sum, row) => sum + row.seconds, 0);
  const sent = waits.reduce((sum, row) => sum + row.requests, 0);
  fill(at("waits"), [
    { head: "mostly because", text: (row) => words.wait(row.reason), className: "words" },
    { head: "requests", text: (row) => words.count(row.requests) },
    plain("adds, ms", (row) => (sent ? (1000 * row.seconds) / sent : null)),
    { head: "of all waiting", text: (row) => words.percent(total ? row.seconds / total : null),
      bar: (row) => (total ? row.seconds / total : 0), plain: true },
  ], waits, { none: "counted while somebody looks; nothing was sent since" });
  fill(at("refusals"), [
    { head: "because", text: (row) => words.refusal(row.reason), className: "words" },
    { head: "class", text: (row) => row.class, title: (row) => row.class },
    { head: "requests", text: (row) => words.count(row.count) },
    { head: "recent", text: (row) => words.count(row.recent) },
  ], refusals.rows, { hidden: refusals.hidden, none: "nobody was refused" });
}

function prediction({ points, error_p50, error_p99 }, colourOf) {
  const sorted = [...points].sort((a, b) => a[1] - b[1]);
  const models = [...new Set(sorted.map(([model]) => model))].sort();
  const all = sorted.flatMap(([, told, took]) => [told, took]).sort((a, b) => a - b);
  const most = Math.max(1, 1.25 * (all[Math.floor(all.length * IN_PICTURE)] ?? 0));
  const within = (value) => Math.min(value, most);
  const data = [
    [0, ...sorted.map(([, told]) => within(told)), most],
    [],
    ...models.map((one) => [null, ...sorted.map(([model, , took]) => (model === one ? within(took) : null)), null]),
  ];
  data[1] = data[0];
  const series = models.map((one) => ({ label: one, stroke: colourOf(one), points: true }));
  charts.prediction.show([{ label: "as predicted", stroke: colour("quiet"), dash: [4, 4] }, ...series], data);
  const note = `last ${points.length} batches; predicted to the right, measured upwards; off by ${words.percent(error_p50)} (median), ${words.percent(error_p99)} (99th); longer ones on the edge`;
  setText(at("prediction-note"), points.length ? note : "no batch yet");
}

function tuning(set, changes) {
  const rows = set.rows_cap ? `at most ${set.rows_cap} rows a batch` : "rows a batch as each model allows";
  setText(at("tuning-rest"), `${rows}; at most ${words.count(set.queue_requests_max)} requests waiting for one model`);
  const shown = changes.length ? [...changes].reverse() : ["no change yet"];
  list(at("changes"), shown, () => element("li"), setText);
}

function reservations({ rows, hidden }) {
  at("reservations-panel").hidden = rows.length === 0;
  fill(at("reservations"), [
    { head: "stream", text: (row) => (row.tenant ? `${row.id} · ${row.tenant}` : `${row.id}`) },
    { head: "model", text: (row) => row.model },
    { head: "device", text: (row) => row.device },
    plain("every, ms", (row) => row.period_ms),
    plain("due in, ms", (row) => row.deadline_ms),
    { head: "frames", text: (row) => words.count(row.frames) },
    { head: "ends in", text: (row) => words.duration(row.ends_in_s) },
  ], rows, { hidden });
}

// -- where frames come from ---------------------------------------------------------------------

const paint = () => { if (last && !document.hidden) draw(last); };

// Draws frames until they end; returns why they did.
async function listen() {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const reply = await fetch("/admin/events", { headers, cache: "no-store" });
  at("access").hidden = reply.ok;
  if (!reply.ok) {
    setText(at("access-why"), `Not shown: ${(await reply.json()).error}`);
    return "not shown";
  }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let got = await reader.read(); !got.done; got = await reader.read()) {
    text += got.value;
    const events = text.split("\n\n");
    text = events.pop();
    if (text.length > TEXT_MAX) throw new Error("a frame without end");
    const data = events.filter((event) => event.startsWith("data: ")).at(-1);
    if (data) {
      last = JSON.parse(data.slice(6));
      at("main").classList.remove("stale");
      paint();
    }
  }
  return "no connection; trying again";
}

async function listenForEver() {
  const why = await listen().catch((error) => `no connection (${error.message}); trying again`);
  show(why, "bad");
  at("main").classList.add("stale");
  await new Promise((resolve) => {
    again = resolve;
    setTimeout(resolve, AGAIN_MS);
  });
  listenForEver();
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  again();
});
document.addEventListener("visibilitychange", paint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(paint));
listenForEver();
