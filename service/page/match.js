// Answers of template matching: how much each place looks like the template, and the best place.

import { ask, modelPath } from "./api.js";
import { h } from "./dom.js";
import { pixels } from "./picture.js";
import { reduction, stage } from "./stage.js";

const LENGTH = "inference-header-content-length";
const READERS = {
  FP32: (bytes) => new Float32Array(bytes),
  INT64: (bytes) => Array.from(new BigInt64Array(bytes), Number),
};

/** Asks over the Open Inference Protocol, with the pixels as bytes. Returns {model, version, result}. */
export async function request(file, target) {
  let picture;
  try {
    picture = await pixels(file, target.info.input.colour);
  } catch {
    throw Object.assign(new Error("This browser cannot read this file. Send JPEG or PNG."), { status: 400, reason: "BAD_IMAGE" });
  }
  const { height, width, channels, data } = picture;
  const parameters = { binary_data_size: data.length };
  const head = new TextEncoder().encode(JSON.stringify({
    inputs: [{ name: "image", datatype: "UINT8", shape: [1, height, width, channels], parameters }],
    parameters: { binary_data_output: true },
  }));
  const response = await ask(`${modelPath("v2", target)}/infer`, {
    method: "POST",
    headers: { "content-type": "application/octet-stream", [LENGTH]: head.length },
    body: new Blob([head, data]),
  });
  const body = await response.arrayBuffer();
  const length = Number(response.headers.get(LENGTH) ?? body.byteLength);
  const answer = JSON.parse(new TextDecoder().decode(body.slice(0, length)));
  const outputs = tensors(answer.outputs, body, length);
  const timings = Object.fromEntries(
    Object.entries(answer.parameters ?? {}).map(([name, value]) => [name.replace(/^convoy_/, ""), value]),
  );
  return { model: answer.model_name, version: answer.model_version, result: { ...outputs, height, width, timings } };
}

export function view({ result, url, name }) {
  const { height, width, heat_map: heat, location, score } = result;
  const [, rows, columns] = heat.shape;
  const box = { height: height - rows + 1, width: width - columns + 1 };
  const [row, column] = location.values;
  const mark = h("span", { class: "mark", style: {
    left: `${(column / width) * 100}%`, top: `${(row / height) * 100}%`,
    width: `${(box.width / width) * 100}%`, height: `${(box.height / height) * 100}%`,
  } });
  // A value is drawn, and read out, at the centre of its window.
  const [down, right] = [box.height >> 1, box.width >> 1];
  const valueAt = (x, y) => {
    const [i, j] = [y - down, x - right];
    return i >= 0 && j >= 0 && i < rows && j < columns ? heat.values[i * columns + j] : null;
  };
  const read = (x, y) => valueAt(x, y)?.toFixed(3) ?? "too near the border";
  const { element, canvas } = stage({ url, name, what: "Heat map", height, width, read, opacity: 0.6, marks: [mark] });
  paint(canvas, height, width, valueAt);
  const place = `x ${column}, y ${row}, width ${box.width}, height ${box.height}`;
  const best = score.values[0].toFixed(3);
  return {
    element: h("div", { class: "segmentation" }, element,
      h("dl", { class: "facts column" },
        ...[["Best place", place], ["Score", `${best} of at most 1`]].map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))))),
    summary: `best place ${place}, score ${best}`,
  };
}

function tensors(outputs, body, begin) {
  const found = {};
  let place = begin;
  for (const { name, datatype, shape, parameters, data } of outputs) {
    const size = parameters?.binary_data_size;
    found[name] = { shape, values: size === undefined ? data : READERS[datatype](body.slice(place, place + size)) };
    place += size ?? 0;
  }
  return found;
}

/** Dark below 0, then red, yellow, and white at 1. */
function paint(canvas, height, width, valueAt) {
  const factor = reduction(height, width);
  canvas.width = Math.ceil(width / factor);
  canvas.height = Math.ceil(height / factor);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  let place = 0;
  for (let y = 0; y < height; y += factor) {
    for (let x = 0; x < width; x += factor, place += 4) {
      const heat = Math.max(0, valueAt(x, y) ?? 0) * 3;
      image.data.set([255 * Math.min(1, heat), 255 * Math.min(1, Math.max(0, heat - 1)), 255 * Math.max(0, heat - 2), 255], place);
    }
  }
  context.putImageData(image, 0, 0);
}
