// Pictures: lines and points by uPlot, the devices on canvases of our own. Rule: colours come from
// the style sheet and are read again when the scheme changes.

import { element, list, setText } from "./tables.js";
import { percent } from "./words.js";

const MODEL_COLOURS = 16;

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export const modelColour = (index) => colour(`m${index % MODEL_COLOURS}`);

function axis(size, values) {
  return {
    size, values, stroke: colour("quiet"), font: "11px system-ui, sans-serif",
    grid: { stroke: colour("line"), width: 1 }, ticks: { show: false },
  };
}

// series: [{ label, stroke, points?, dash? }]
export class Chart {
  constructor(target, { y = (v) => `${v}`, x = (v) => `${v}`, xRange, yRange } = {}) {
    this.target = target;
    this.options = { y, x, xRange, yRange };
    this.signature = "";
    this.plot = null;
    new ResizeObserver(() => this.resize()).observe(target);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.signature = ""; });
  }

  size() {
    return { width: Math.max(120, this.target.clientWidth), height: this.target.clientHeight };
  }

  resize() {
    if (this.plot) this.plot.setSize(this.size());
  }

  show(series, data) {
    const signature = JSON.stringify(series);
    if (signature !== this.signature) {
      this.plot?.destroy();
      this.plot = new uPlot(this.made(series), data, this.target);
      this.signature = signature;
    } else {
      this.plot.setData(data);
    }
  }

  made(series) {
    const { x, y, xRange, yRange } = this.options;
    return {
      ...this.size(),
      legend: { show: false },
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: xRange }, y: { range: yRange } },
      axes: [axis(26, (_, values) => values.map(x)), axis(52, (_, values) => values.map(y))],
      series: [{}, ...series.map((one) => ({
        label: one.label, stroke: one.stroke, width: 1.5, dash: one.dash,
        paths: one.points ? () => null : undefined,
        points: { show: Boolean(one.points), size: 5, fill: one.stroke, width: 0 },
      }))],
    };
  }
}

// From 0 to a little over the largest, and never nothing.
export function fromZero(least) {
  return (_, __, max) => [0, Math.max(least, (max ?? 0) * 1.08)];
}

function row() {
  const made = element("div", "device");
  const canvas = element("canvas");
  made.append(element("span"), canvas, element("span"));
  return made;
}

// One line a device: a bar a batch, as wide as it took.
export function gantt(target, devices, colourOf) {
  list(target, devices.rows, row, (line, device) => {
    const [name, canvas, busy] = line.children;
    setText(name, device.name);
    name.title = device.name;
    setText(busy, percent(device.busy_share));
    const words = `${device.name}: ${device.runs.length} batches, busy ${percent(device.busy_share)}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", words);
    draw(canvas, device.runs, devices.chart_s * 1000, colourOf);
    canvas.onmousemove = (event) => { canvas.title = under(event, canvas, device.runs, devices.chart_s * 1000); };
  });
}

const AHEAD = 0.06; // of the width: where what runs is predicted to end

function scale(canvas, spanMs) {
  const nowX = canvas.clientWidth * (1 - AHEAD);
  return (ms) => nowX + (ms / spanMs) * nowX;
}

function draw(canvas, runs, spanMs, colourOf) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const at = scale(canvas, spanMs);
  pen.fillStyle = colour("line");
  pen.fillRect(0, height - 2, width, 1);
  pen.fillRect(at(0), 0, 1, height);
  for (const [model, from, to, , , state] of runs) {
    const [left, right] = [Math.max(0, at(from)), Math.min(width, at(to))];
    if (right <= 0) continue;
    const bar = Math.max(1, right - left - (right - left > 4 ? 1 : 0));
    pen.fillStyle = state === "failed" ? colour("failed") : colourOf(model);
    pen.strokeStyle = pen.fillStyle;
    if (state === "running") pen.strokeRect(left + 0.5, 4.5, Math.max(1, bar - 1), height - 9);
    else pen.fillRect(left, 4, bar, height - 8);
  }
}

function under(event, canvas, runs, spanMs) {
  const at = scale(canvas, spanMs);
  const found = runs.find(([, from, to]) => at(from) <= event.offsetX && event.offsetX <= at(to));
  if (!found) return "";
  const [model, from, to, rows, requests, state] = found;
  return `${model}: ${requests} requests, ${rows} rows, ${(to - from).toFixed(1)} ms, ${state}`;
}
