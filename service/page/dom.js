// Small helpers to build the page. Text goes in as text, never as HTML: names come from model files.

const SVG = "http://www.w3.org/2000/svg";

/** Creates an element. Properties that begin with "on" are listeners; true and false set or leave out an attribute. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

export const byId = (id) => document.getElementById(id);

/** "3 images", "1 image". */
export const counted = (number, noun, plural = `${noun}s`) => `${whole(number)} ${number === 1 ? noun : plural}`;

export const whole = (number) => Math.round(number).toLocaleString("en");

/** A share of 0 to 1 as text. What is not all or nothing is never shown as 100 % or 0 %. */
export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(share * 100).toFixed(share > 0 && share < 1 ? 1 : 0)} %`;
}

/** Seconds as text, with about three digits. */
export function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const ms = seconds * 1000;
  if (ms >= 100) return `${ms.toFixed(0)} ms`;
  if (ms >= 1) return `${ms.toFixed(1)} ms`;
  return ms >= 0.01 ? `${ms.toFixed(2)} ms` : seconds > 0 ? "< 0.01 ms" : "0 ms";
}

/** What ONNX Runtime calls CPUExecutionProvider is "CPU". */
export const provider = (name) => name.replace(/ExecutionProvider$/, "");

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
