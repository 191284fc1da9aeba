// The models panel: every version, what it is, and why it does not serve where it does not.

import { counted, h, percent, provider, whole } from "./dom.js";

const STATES = { READY: "Ready", LOADING: "Loading", UNAVAILABLE: "Not available" };
const SHOWN = 12; // labels; a click shows the others
const SHARES = /^top\d|iou|accuracy|f1$|precision|recall|dice/;
let drawn = "";

/** Draws the rows of /api/models. `tryIt` is called with the row whose button was pressed. */
export function show(element, models, tryIt) {
  const key = JSON.stringify(models);
  if (key === drawn && element.children.length) return; // nobody's focus is lost to a look at the server
  drawn = key;
  if (!models.length) {
    element.replaceChildren(h("p", { class: "nothing" }, "The repository has no models. Put a file at MODEL/1/model.onnx: the server watches its folder."));
    return;
  }
  element.replaceChildren(...models.map((row) => card(row, tryIt)));
}

function card(row, tryIt) {
  const serves = row.state === "READY";
  return h("article", { class: "panel model", "data-model": row.model, "data-version": row.version },
    h("div", { class: "card-head" },
      h("h3", {}, row.model, " ", h("span", { class: "small" }, `version ${row.version}`)),
      h("span", { class: "badge", "data-state": row.state }, STATES[row.state] ?? row.state)),
    row.reason && h("p", { class: serves ? "small" : "reason" }, row.reason),
    serves && facts(row),
    serves && row.labels.length > 0 && labels(row),
    serves && row.input && h("button", { type: "button", onclick: () => tryIt(row) }, `Try ${row.model}`));
}

function facts(row) {
  const found = [
    ["Task", row.task],
    ["Network", row.architecture],
    ["Data", row.data],
    ["Input", input(row)],
    ["Precision", row.precision || (row.parity && "fp32")],
    ["Runs on", provider(row.provider)],
    ["Images in a batch", `up to ${whole(row.max_batch_size)}`],
    ...Object.entries(row.metrics).map(([name, value]) => [`Held out: ${name.replaceAll("_", " ")}`, SHARES.test(name) ? percent(value) : value.toPrecision(4)]),
    ...parity(row),
    ...variant(row),
  ];
  return h("dl", { class: "facts" },
    ...found.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function input({ input: spec, tensor, inputs }) {
  if (spec) {
    const size = spec.height_px ? `${spec.width_px} × ${spec.height_px}` : "any size";
    return `${size}, ${spec.colour === "L" ? "grey" : "colour"}`;
  }
  if (tensor) return `${tensor.name}: ${tensor.axes.map((axis) => `${axis.name} ${axis.size ?? "(any)"}`).join(" × ")}`;
  return inputs.map(({ name, datatype, shape }) => `${name} ${datatype} [${shape.map((side) => (side < 0 ? "any" : side)).join(", ")}]`).join("; ");
}

function parity({ parity: measured }) {
  if (!measured) return [];
  const agreement = measured.top1_agreement ?? measured.mask_agreement;
  const same = measured.mask_agreement === null || measured.mask_agreement === undefined ? "predictions" : "pixels";
  return [
    ["Parity with PyTorch", `${percent(agreement)} of ${same} equal on ${counted(measured.images, "input")}`],
    ["Largest difference", measured.max_abs_difference.toExponential(1)],
  ];
}

function variant({ variant: measured }) {
  if (!measured) return [];
  return [["Against fp32", `${percent(measured.agreement)} of predictions equal, ${measured.speed_up.toFixed(2)} times as fast`]];
}

function labels({ labels: names, palette, model }) {
  const item = (name, index) => h("li", {}, palette[index] && h("span", { class: "swatch", style: { background: `rgb(${palette[index]})` } }), name);
  const first = h("ul", { class: "chips", "aria-label": `Labels of ${model}` }, ...names.slice(0, SHOWN).map(item));
  if (names.length <= SHOWN) return first;
  const list = h("ul", { class: "chips", "aria-label": `Further labels of ${model}` });
  const more = h("details", {}, h("summary", {}, `${whole(names.length - SHOWN)} more labels`), list);
  more.addEventListener("toggle", () => { list.replaceChildren(...names.slice(SHOWN).map((name, place) => item(name, place + SHOWN))); }, { once: true });
  return h("div", {}, first, more);
}
