// One card for each picture: what was sent, and what the server answers.

import { askJson, modelPath } from "./api.js";
import { byId, duration, h, percent, provider, svg, whole } from "./dom.js";

const STAGES = ["receive", "decode", "preprocess", "queue", "gather", "run", "scatter", "postprocess"];
const AT_ONCE = 6; // requests under way: a browser sends no more at a time
const MOST_CARDS = 60;

const viewers = { segmentation: () => import("./mask.js"), matching: () => import("./match.js") };
const waiting = [];
let running = 0;

/** Loads what shows the answers of a task, before the first one is there. */
export const prepare = (task) => viewers[task]?.();

/** Sends files to a model. Their cards come before older ones, in the order of the files. */
export function send(files, target, options) {
  const cards = files.map((file) => new Card(file, target, options));
  byId("answers").prepend(...cards.map((card) => card.element));
  [...byId("answers").children].slice(MOST_CARDS).forEach(discard);
  listed();
  for (const card of cards) waiting.push(card);
  next();
}

export function clear() {
  [...byId("answers").children].forEach(discard);
  listed();
}

/** Removes a card, and its picture from memory. */
function discard(element) {
  URL.revokeObjectURL(element.dataset.picture);
  element.remove();
}

function listed() {
  const some = byId("answers").children.length > 0;
  byId("nothing").hidden = some;
  byId("clear").hidden = !some;
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    waiting.shift().run().finally(() => {
      running--;
      next();
    });
  }
}

class Card {
  constructor(file, target, options) {
    Object.assign(this, { file, target, options });
    this.name = file.name || "pasted picture";
    this.body = h("div", { class: "card-body" }, h("p", { class: "small waiting" }, "Waiting for the answer …"));
    this.note = h("p", { class: "small note", hidden: true });
    this.element = h(
      "li",
      { class: "card panel" },
      h("div", { class: "card-head" }, h("h4", {}, this.name), this.closeButton()),
      this.note,
      this.body,
    );
    this.state("waiting");
  }

  closeButton() {
    const remove = () => {
      const after = this.element.nextElementSibling?.querySelector("button") ?? byId("choose");
      discard(this.element);
      listed();
      after.focus();
    };
    const cross = svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" },
      svg("path", { d: "M4 4l8 8M12 4l-8 8", stroke: "currentColor", "stroke-width": 1.6, "stroke-linecap": "round" }));
    return h("button", { type: "button", class: "quiet icon", "aria-label": `Remove ${this.name}`, onclick: remove }, cross);
  }

  state(name) {
    this.element.dataset.state = name;
  }

  async run() {
    const began = performance.now();
    try {
      const { answer, picture } = await this.asked();
      const seconds = (performance.now() - began) / 1000;
      await this.show(answer, picture, seconds);
      this.state("answered");
    } catch (error) {
      this.fail(error);
    }
  }

  /** Returns the answer, and the file that the server has read. */
  async asked() {
    try {
      return { answer: await request(this.file, this.target, this.options), picture: this.file };
    } catch (error) {
      const decoded = this.target.info.task === "matching"; // by this browser, already
      if (error.reason !== "BAD_IMAGE" || decoded || (await isServable(this.file))) throw error;
      return this.askedAsPng(error);
    }
  }

  async askedAsPng(refused) {
    const { toPng } = await import("./picture.js");
    let png;
    try {
      png = await toPng(this.file);
    } catch {
      refused.message = `Neither the server nor this browser can read this file (${refused.message}). Send JPEG or PNG.`;
      throw refused;
    }
    const answer = await request(png, this.target, this.options);
    this.note.textContent = "The server does not read this kind of file. Your browser has made a PNG of it.";
    this.note.hidden = false;
    return { answer, picture: png };
  }

  async show(answer, picture, seconds) {
    if (!this.element.isConnected) return; // it was removed meanwhile
    const url = URL.createObjectURL(picture);
    this.element.dataset.picture = url;
    const { task } = this.target.info;
    const told = { ...answer, url, name: this.name, info: this.target.info, picture };
    const view = task === "classification" ? ranking(told) : await (await viewers[task]()).view(told);
    this.body.replaceChildren(view.element, timings(answer, this.target.info, seconds));
    byId("said").textContent = `${this.name}: ${view.summary}`;
  }

  fail(error) {
    const wait = error.retryAfter ? ` Try again in ${duration(error.retryAfter)}.` : "";
    const again = h("button", { type: "button", onclick: () => this.again() }, "Try again");
    const retry = !error.status || error.status === 429 || error.status >= 500;
    const message = error.status === undefined ? `This page could not show the answer: ${error.message}` : error.message;
    this.body.replaceChildren(
      h("div", { class: "failure" },
        h("p", {}, h("strong", {}, error.reason ? `${error.reason} ` : ""), message + wait),
        retry && again),
    );
    this.state("failed");
    byId("said").textContent = `${this.name}: ${message}`;
  }

  again() {
    this.body.replaceChildren(h("p", { class: "small waiting" }, "Waiting for the answer …"));
    this.state("waiting");
    waiting.push(this);
    next();
  }
}

/** Returns {model, version, result}. */
async function request(file, target, options) {
  if (target.info.task === "matching") return (await viewers.matching()).request(file, target);
  const query = new URLSearchParams(queryOf(target.info, options)).toString();
  const method = target.info.task === "classification" ? "classify" : "segment";
  const path = `${modelPath("v1", target)}:${method}${query && `?${query}`}`;
  const { model, version, results } = await askJson(path, {
    method: "POST",
    // Never the file's own type: one that calls itself JSON would be read as such.
    headers: { "content-type": "application/octet-stream" },
    body: file,
  });
  return { model, version, result: results[0] };
}

/** The options of a model's task, as the parameters of its URL. */
export function queryOf(info, { topK, confidence, low }) {
  return {
    ...(info.task === "classification" && { top_k: topK }),
    ...(info.task === "segmentation" && confidence && info.confidence && { confidence: 1 }),
    ...(low && { priority: "low" }),
  };
}

async function isServable(file) {
  const begin = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  return ["137,80,78,71", "255,216,255"].some((signature) => begin.join().startsWith(signature));
}

function ranking({ result, url, name }) {
  const { labels } = result;
  const bars = labels.map(({ name: label, probability }, place) =>
    h("li", { class: place ? "" : "first" },
      h("span", { class: "bar-name" }, label),
      h("span", { class: "bar-value" }, percent(probability)),
      h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: { width: `${probability * 100}%` } }))));
  const picture = h("img", { src: url, alt: `What was sent: ${name}`, class: "thumbnail" });
  picture.onload = () => picture.classList.toggle("tiny", picture.naturalWidth < 64);
  return {
    element: h("div", { class: "ranking" }, picture, h("ol", { class: "bars" }, ...bars)),
    summary: labels.length ? `${labels[0].name}, ${percent(labels[0].probability)}` : "no label",
  };
}

/** Where the time of this very answer went. */
function timings({ model, version, result }, info, seconds) {
  const times = result.timings;
  const spans = STAGES.map((stage) => [stage, times[`${stage}_seconds`] ?? 0]).filter(([, time]) => time > 0);
  const sum = spans.reduce((total, [, time]) => total + time, 0);
  const words = spans.map(([stage, time]) => `${stage} ${duration(time)}`).join(", ");
  const bar = h("div", { class: "times", role: "img", "aria-label": `Time in the server: ${words}` },
    ...spans.map(([stage, time]) => h("span", { "data-stage": stage, title: `${stage} ${duration(time)}`, style: { "flex-grow": (1000 * time) / sum } })));
  const legend = h("ul", { class: "times-legend" },
    ...spans.map(([stage, time]) => h("li", {}, h("span", { class: "swatch", "data-stage": stage }), stage, " ", h("b", {}, duration(time)))));
  const facts = [
    ["Model", `${model}, version ${version}`],
    ["Runs on", provider(info.provider)],
    ["Batch", whole(times.batch_size ?? 1)],
    ["In the server", duration(times.total_seconds)],
    ["Seen from here", duration(seconds)],
  ];
  return h("div", { class: "timings", "data-total": times.total_seconds }, bar, legend,
    h("dl", { class: "facts" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

