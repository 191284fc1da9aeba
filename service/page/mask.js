// Answers of segmentation: the class of each pixel over the picture, and a legend that lights up or hides classes.

import { h, percent, whole as number } from "./dom.js";
import { palettePng } from "./png.js";
import { mask } from "./rle.js";
import { reduction, stage } from "./stage.js";

const NOTHING = /^(background|void|unlabell?ed|_background_)$/i;

export function view({ result, info, url, name }) {
  const { height_px: height, width_px: width } = result;
  const classes = mask(height, width, result.run_lengths);
  const names = new Map(result.class_pixels.map((each) => [each.class_index, each.name]));
  const present = result.class_pixels.filter((each) => each.pixels > 0).sort((one, other) => other.pixels - one.pixels);
  // What is behind everything hides most of the picture and says least.
  const hidden = new Set(present.filter((each) => NOTHING.test(each.name) && present.length > 1).map((each) => each.class_index));
  const whole = h("div", { class: "segmentation" });
  let confidence = null;
  if (result.confidence_png) {
    bytesOf(result.confidence_png.b64).then((values) => {
      confidence = values;
      whole.dataset.confidence = "";
    });
  }

  const read = (x, y) => {
    const place = y * width + x;
    const label = names.get(classes[place]) ?? `class ${classes[place]}`;
    return confidence ? `${label}, ${percent(confidence[place] / 255)} sure` : label;
  };
  const save = h("button", { type: "button", onclick: () => download(height, width, classes, info, name) }, "Download PNG");
  const { element, canvas } = stage({ url, name, what: "Mask", height, width, read, tools: [save] });
  const paint = painter(canvas, height, width, classes, info.palette);
  const draw = (lit = null) => paint(hidden, lit);
  draw();

  const area = height * width;
  const legend = present.map((each) => entry(each, area, info.palette, hidden, draw));
  const absent = result.class_pixels.length - present.length;
  const summary = present.slice(0, 3).map((each) => `${each.name} ${percent(each.pixels / area)}`).join(", ");
  const note = h("p", { class: "small" }, `${width} × ${height} pixels. Point at a class to see it alone, click to hide it.`,
    absent > 0 && ` ${number(absent)} other ${absent === 1 ? "class is" : "classes are"} not in this picture.`);
  whole.append(element, h("div", {}, h("ul", { class: "legend", "aria-label": "Classes and their area" }, ...legend), note));
  return { element: whole, summary };
}

function entry({ class_index: index, name, pixels }, area, palette, hidden, draw) {
  const colour = `rgb(${palette[index] ?? [128, 128, 128]})`;
  const button = h("button", { type: "button", class: "entry", "aria-pressed": String(!hidden.has(index)), "data-class": index },
    h("span", { class: "swatch", style: { background: colour } }),
    h("span", { class: "bar-name" }, name),
    h("span", { class: "bar-value", title: `${number(pixels)} pixels` }, percent(pixels / area)),
    h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: { width: `${(pixels / area) * 100}%`, background: colour } })));
  button.addEventListener("click", () => {
    if (!hidden.delete(index)) hidden.add(index);
    button.setAttribute("aria-pressed", String(!hidden.has(index)));
    draw();
  });
  for (const [begin, end] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
    button.addEventListener(begin, () => { if (begin !== "focus" || button.matches(":focus-visible")) draw(index); });
    button.addEventListener(end, () => draw());
  }
  return h("li", {}, button);
}

/** Returns a function that draws all classes but the hidden ones; one that is lit stands out, also where it is hidden. */
function painter(canvas, height, width, classes, palette) {
  const factor = reduction(height, width);
  canvas.width = Math.ceil(width / factor);
  canvas.height = Math.ceil(height / factor);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const out = new Uint32Array(image.data.buffer);
  const colours = new Uint32Array(256);
  return (hidden, lit) => {
    for (let index = 0; index < 256; index++) {
      const [red, green, blue] = palette[index] ?? [128, 128, 128];
      const alpha = lit === null ? (hidden.has(index) ? 0 : 255) : index === lit ? 255 : hidden.has(index) ? 0 : 40;
      colours[index] = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian RGBA
    }
    let place = 0;
    for (let y = 0; y < height; y += factor) {
      for (let x = y * width, end = x + width; x < end; x += factor) out[place++] = colours[classes[x]];
    }
    context.putImageData(image, 0, 0);
  };
}

async function bytesOf(b64) {
  const { grey } = await import("./picture.js");
  const bytes = Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0));
  return grey(new Blob([bytes], { type: "image/png" }));
}

async function download(height, width, classes, info, name) {
  const palette = Array.from({ length: Math.max(info.palette.length, 1) }, (_, index) => info.palette[index]);
  const url = URL.createObjectURL(await palettePng(height, width, classes, palette));
  h("a", { href: url, download: `${name.replace(/\.[^.]*$/, "")}-mask.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
