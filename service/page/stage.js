// A picture with something drawn over it: opacity, a key that hides it, and what is under the pointer.

import { h } from "./dom.js";

const stages = new Set();

/**
 * Returns {element, canvas}. `read(x, y)` is what to say of a pixel of a picture of that height and width; `tools` are further
 * buttons. The canvas may be smaller than the picture.
 */
export function stage({ url, name, what, height, width, read, opacity = 0.55, tools = [], marks = [] }) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const point = h("span", { class: "point", hidden: true });
  const output = h("p", { class: "readout small", role: "status" });
  const picture = h("img", { src: url, alt: "" });
  const help = `${what} of ${name}. Arrow keys move a point, with Shift pixel by pixel; its value is read out.`;
  const frame = h("div", { class: "stage", tabindex: 0, role: "application", "aria-label": help }, picture, canvas, ...marks, point);
  frame.style.setProperty("--ratio", width / height);
  frame.classList.toggle("tiny", width < 300 && height < 300);
  canvas.style.opacity = opacity;

  const slider = h("input", { type: "range", min: 0, max: 100, value: opacity * 100, "aria-label": `Opacity of the ${what.toLowerCase()}` });
  slider.addEventListener("input", () => { canvas.style.opacity = slider.value / 100; });
  const toggle = h("button", { type: "button", "aria-pressed": "true", "aria-keyshortcuts": "m" }, `${what} `, h("kbd", {}, "M"));
  const self = {
    get shown() { return toggle.getAttribute("aria-pressed") === "true"; },
    set shown(on) {
      toggle.setAttribute("aria-pressed", String(on));
      canvas.hidden = !on;
    },
    get alive() { return frame.isConnected; },
  };
  toggle.addEventListener("click", () => { self.shown = !self.shown; });
  stages.add(self);

  let place = null;
  const say = (x, y) => {
    place = [clamp(x, width), clamp(y, height)];
    point.style.left = `${((place[0] + 0.5) / width) * 100}%`;
    point.style.top = `${((place[1] + 0.5) / height) * 100}%`;
    output.replaceChildren(`x ${place[0]}, y ${place[1]}: `, h("b", {}, read(...place)));
  };
  const leave = () => {
    point.hidden = true;
    output.textContent = "Point at the picture, or move with the arrow keys.";
  };
  frame.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    say(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
  });
  frame.addEventListener("pointerleave", () => { if (point.hidden) leave(); });
  frame.addEventListener("blur", leave);
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const far = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 40));
    const [x, y] = place ?? [Math.floor(width / 2), Math.floor(height / 2)];
    point.hidden = false;
    say(x + step[0] * far, y + step[1] * far);
  });
  leave();

  const controls = h("div", { class: "row tools" }, toggle, h("label", { class: "slider" }, h("span", { class: "small" }, "Opacity"), slider), ...tools);
  return { element: h("div", { class: "viewer" }, frame, output, controls), canvas };
}

/** How many pixels of a picture are one of a canvas, each side, so that it stays small. */
export const reduction = (height, width) => Math.max(1, Math.ceil(Math.sqrt((height * width) / (1 << 22))));

// One key for all of them: blinking between picture and mask shows more than any slider.
document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "m" || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("textarea, select, input:not([type=range], [type=checkbox])")) return;
  for (const each of stages) if (!each.alive) stages.delete(each);
  const on = ![...stages].some((each) => each.shown);
  for (const each of stages) each.shown = on;
});

const clamp = (value, side) => Math.min(side - 1, Math.max(0, Math.floor(value)));
