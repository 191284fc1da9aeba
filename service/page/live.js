// The live panel: what the server does now, from the difference of two looks at its counts.

import { askJson } from "./api.js";
import { duration, h, provider, svg, whole } from "./dom.js";

const EVERY = 1000; // ms
const KEPT = 60; // looks, which the charts show
const WINDOW = 10; // looks that latencies are taken from: few requests a second make a better guess together
let timer = 0;
let running = false;
let looks = [];
let points = [];
let parts = null;

export function start(element, models) {
  if (running) return;
  running = true;
  parts ??= build(element, models);
  document.addEventListener("visibilitychange", schedule);
  schedule();
}

export function stop() {
  running = false;
  clearTimeout(timer);
  document.removeEventListener("visibilitychange", schedule);
}

/** The value below which a share of the observations lie, in a histogram with these upper bounds; null: there are none. */
export function quantile(counts, bounds, share) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let rank = share * total;
  for (let place = 0; place < counts.length; place++) {
    if (rank <= counts[place] && counts[place]) {
      const below = place ? bounds[place - 1] : 0;
      return place < bounds.length ? below + (bounds[place] - below) * (rank / counts[place]) : below;
    }
    rank -= counts[place];
  }
  return bounds[bounds.length - 1];
}

function schedule() {
  clearTimeout(timer);
  // Nobody sees a hidden page: it asks for nothing.
  if (running && document.visibilityState === "visible") look();
}

async function look() {
  const began = performance.now();
  try {
    const figures = await askJson("/api/live");
    const last = looks[looks.length - 1];
    // After a pause, or a restart of the server, the differences mean nothing.
    if (last && (figures.at - last.at > 5 || figures.at < last.at)) forget();
    looks = [...looks, figures].slice(-KEPT - 1);
    parts.problem.hidden = true;
    draw();
  } catch (error) {
    parts.problem.hidden = false;
    parts.problem.textContent = error.message;
    forget();
  }
  if (running) timer = setTimeout(schedule, Math.max(50, EVERY - (performance.now() - began)));
}

function forget() {
  looks = [];
  points = [];
}

function build(element, models) {
  const select = h("select", { id: "live-model", onchange: () => { points = []; again(); } }, h("option", { value: "" }, "All models"));
  const tiles = h("dl", { class: "tiles" });
  const charts = h("div", { class: "charts" });
  const stages = h("tbody");
  const batches = h("ul", { class: "counts" });
  const refusals = h("ul", { class: "counts" });
  const problem = h("p", { class: "reason", hidden: true, role: "status" });
  element.append(
    h("div", { class: "row" }, h("label", { class: "label", for: "live-model" }, "Show"), select), problem, tiles, charts,
    h("div", { class: "charts" },
      h("div", { class: "panel" }, h("h3", {}, "Time of an image by stage"),
        h("table", {}, h("thead", {}, h("tr", {}, ...["Stage", "p50", "p99"].map((name) => h("th", { scope: "col" }, name)))), stages),
        h("p", { class: "small" }, "Of the last 10 seconds: half of the images took at most p50, 99 of 100 at most p99.")),
      h("div", { class: "panel" }, h("h3", {}, "Images in a batch"), batches, h("h3", {}, "Refusals since the start"), refusals)));
  return { select, tiles, charts, stages, batches, refusals, problem, models };
}

/** The points of the charts again, for another model. */
function again() {
  const all = looks;
  for (let count = 2; count <= all.length; count++) points.push(point(all.slice(0, count)));
  points = points.slice(-KEPT);
  if (all.length) draw(true);
}

function draw(old = false) {
  fillSelect();
  if (!old && looks.length > 1) points = [...points, point(looks)].slice(-KEPT);
  const now = looks[looks.length - 1];
  const latest = points[points.length - 1];
  const model = parts.select.value;
  const restarts = Object.values(now.restarts).reduce((sum, count) => sum + count, 0);
  const rows = parts.models().filter((row) => row.state === "READY" && (!model || row.model === model));
  parts.tiles.replaceChildren(...[
    ["Requests a second", rate(latest?.requests)],
    ["Images a second", rate(latest?.images)],
    ["p50", time(latest?.p50)],
    ["p99", time(latest?.p99)],
    ["In flight", whole(now.in_flight)],
    ["Waiting for the device", whole(sum(now.models.filter((each) => !model || each.model === model), (each) => each.queue))],
    ["Restarts of processes", whole(restarts)],
    ["Runs on", [...new Set(rows.map((row) => provider(row.provider)))].join(", ") || "–"],
  ].map(([name, value]) => h("div", { class: "panel" }, h("dt", {}, name), h("dd", {}, value))));
  parts.charts.replaceChildren(
    chart("Requests a second", [["requests", points.map((each) => each.requests)]], rate),
    chart("Time of a request", [["p50", points.map((each) => each.p50)], ["p99", points.map((each) => each.p99)]], time));
  table(now, model);
}

function fillSelect() {
  const names = [...new Set(parts.models().map((row) => row.model))];
  if (parts.select.dataset.names === names.join()) return;
  const before = parts.select.value;
  parts.select.dataset.names = names.join();
  parts.select.replaceChildren(h("option", { value: "" }, "All models"), ...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) parts.select.value = before;
}

/** What a moment of the charts shows, from all looks up to then. */
function point(all) {
  const now = all[all.length - 1];
  const before = all[all.length - 2];
  const earlier = all[Math.max(0, all.length - 1 - WINDOW)];
  const seconds = Math.max(0.001, now.at - before.at);
  const requests = difference(now, before, (version) => sum(Object.values(version.requests), (count) => count));
  const images = difference(now, before, (version) => version.images);
  const times = histogram(now, earlier, (version) => version.duration);
  return {
    requests: requests / seconds,
    images: images / seconds,
    p50: quantile(times, now.bounds, 0.5),
    p99: quantile(times, now.bounds, 0.99),
  };
}

function table(now, model) {
  const earlier = looks[Math.max(0, looks.length - 1 - WINDOW)];
  parts.stages.replaceChildren(...now.stages.map((stage) => {
    const counts = histogram(now, earlier, (version) => version.stages[stage]);
    return h("tr", {},
      h("th", { scope: "row" }, h("span", { class: "swatch", "data-stage": stage }), stage),
      h("td", {}, time(quantile(counts, now.bounds, 0.5))), h("td", {}, time(quantile(counts, now.bounds, 0.99))));
  }));
  const sizes = new Map();
  for (const version of versions(now)) {
    for (const [size, count] of Object.entries(version.batch_sizes)) sizes.set(Number(size), (sizes.get(Number(size)) ?? 0) + count);
  }
  bars(parts.batches, [...sizes].sort(([one], [other]) => one - other).map(([size, count]) => [String(size), count]), "No batch has run.");
  const reasons = new Map();
  for (const each of now.models.filter((one) => !model || one.model === model)) {
    for (const [reason, count] of Object.entries(each.refusals)) reasons.set(reason, (reasons.get(reason) ?? 0) + count);
  }
  bars(parts.refusals, [...reasons].sort(([, one], [, other]) => other - one), "None.");
}

function bars(list, rows, nothing) {
  const most = Math.max(1, ...rows.map(([, count]) => count));
  list.replaceChildren(...(rows.length ? rows.map(([name, count]) => h("li", {},
    h("span", { class: "bar-name" }, name), h("span", { class: "bar-value" }, whole(count)),
    h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: { width: `${(count / most) * 100}%` } })))) : [h("li", { class: "small" }, nothing)]));
}

const versions = (figures) => figures.versions.filter((each) => !parts.select.value || each.model === parts.select.value);

function difference(now, before, of) {
  return Math.max(0, sum(versions(now), of) - sum(versions(before), of));
}

function histogram(now, before, of) {
  const total = (figures) => {
    const counts = Array(now.bounds.length + 1).fill(0);
    for (const version of versions(figures)) (of(version)?.counts ?? []).forEach((count, place) => { counts[place] += count; });
    return counts;
  };
  const earlier = total(before);
  return total(now).map((count, place) => Math.max(0, count - earlier[place]));
}

function chart(name, series, text) {
  const [width, height] = [300, 80];
  const values = series.flatMap(([, numbers]) => numbers).filter((value) => value !== null);
  const most = Math.max(...values, 0) || 1;
  const lines = series.map(([label, numbers]) => {
    let path = "";
    numbers.forEach((value, place) => {
      if (value === null) return;
      const x = width - ((numbers.length - 1 - place) * width) / (KEPT - 1);
      const y = height - 2 - (value / most) * (height - 6);
      const begins = !path || numbers[place - 1] === null;
      path += `${begins ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}${begins ? "l0 0" : ""}`; // a point alone is a dot
    });
    return svg("path", { d: path || "M0 0", class: `line ${label}`, "vector-effect": "non-scaling-stroke" });
  });
  const last = series.map(([label, numbers]) => `${series.length > 1 ? `${label} ` : ""}${text(numbers[numbers.length - 1])}`).join(", ");
  const keys = series.length > 1 ? series.map(([label, numbers]) => h("span", { class: `key ${label}` }, `${label} ${text(numbers[numbers.length - 1])}`)) : [];
  return h("figure", { class: "panel" },
    h("figcaption", {}, h("span", { class: "label" }, name), h("span", { class: "small" }, ...keys, ` peak ${values.length ? text(Math.max(...values)) : "–"}`)),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${name} over the last minute: ${last}` }, ...lines),
    h("p", { class: "axis small" }, h("span", {}, "60 s ago"), h("span", {}, "now")));
}

const rate = (value) => (value === undefined || value === null ? "–" : value >= 10 || value === 0 ? whole(value) : value.toFixed(1));
const time = (value) => (value === undefined || value === null ? "–" : duration(value));
const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);
