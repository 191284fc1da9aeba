// The page: which models there are, pictures in, answers out.

import { clear, prepare, send } from "./answers.js";
import { ask, askJson, setToken } from "./api.js";
import { calls } from "./calls.js";
import { byId, counted, h, provider } from "./dom.js";

const TASKS = { classification: "Classification", segmentation: "Segmentation", matching: "Template matching", tensors: "Tensors" };
const REFRESH = 10_000; // ms between two looks at which models there are, while the page is visible
const VIEWS = ["try", "models", "live"];

const state = { models: [], server: {}, target: null, sampled: "", refreshed: 0 };

async function refresh() {
  state.refreshed = performance.now();
  try {
    const { models, server } = await askJson("/api/models");
    Object.assign(state, { models, server });
    byId("token").hidden = true;
    byId("server").textContent = `Convoy ${server.version}, gRPC at ${server.grpc}.`;
    showStatus();
    fillModels();
    if (currentView() === "models") await openModels();
  } catch (error) {
    say(error.status === 401 ? "Token needed" : error.message, "bad");
  }
}

function showStatus() {
  const ready = state.models.filter((row) => row.state === "READY");
  const others = state.models.length - ready.length;
  const where = [...new Set(ready.map((row) => provider(row.provider)))].join(", ");
  const text = ready.length ? `${counted(ready.length, "version")} ready on ${where}` : "No model is ready";
  say(others ? `${text}, ${others} not` : text, ready.length ? (others ? "some" : "good") : "bad");
}

function say(text, kind) {
  const status = byId("status");
  // Only what has changed is read out.
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
  status.dataset.kind = kind;
}

/** The choices of the list: each model as it serves, and each version where there are several. */
function choices() {
  const found = [];
  for (const model of new Set(state.models.map((row) => row.model))) {
    const rows = state.models.filter((row) => row.model === model && row.state === "READY");
    if (!rows.length) continue;
    found.push({ model, version: 0, info: rows[0], label: model });
    if (rows.length > 1) for (const info of rows) found.push({ model, version: info.version, info, label: `${model}, version ${info.version}` });
  }
  return found;
}

const keyOf = ({ model, version }) => (version ? `${model}/${version}` : model);

function fillModels() {
  const select = byId("model");
  const found = choices();
  const before = select.value || sessionStorage.getItem("convoy.model") || "";
  const keys = found.map(keyOf).join();
  if (select.dataset.keys !== keys) {
    select.dataset.keys = keys;
    const groups = Object.entries(TASKS).map(([task, label]) => {
      const options = found.filter((each) => each.info.task === task).map((each) => h("option", { value: keyOf(each) }, each.label));
      return options.length && h("optgroup", { label }, ...options);
    });
    select.replaceChildren(...groups.filter(Boolean));
    if (found.some((each) => keyOf(each) === before)) select.value = before;
  }
  choose(found.find((each) => keyOf(each) === select.value) ?? null);
}

function choose(target) {
  state.target = target;
  const pictures = Boolean(target?.info.input);
  byId("drop").classList.toggle("off", !pictures);
  for (const id of ["choose", "photograph"]) byId(id).disabled = !pictures;
  for (const option of document.querySelectorAll(".option")) {
    option.hidden = !option.dataset.for.split(" ").includes(pictures ? target.info.task : "");
  }
  const asks = document.querySelector('.option[data-for="segmentation"]');
  if (!target?.info.confidence) asks.hidden = true;
  byId("options").hidden = ![...document.querySelectorAll(".option")].some((option) => !option.hidden);
  byId("code").hidden = !target;
  byId("about").textContent = target ? about(target.info) : "No model is ready. The section Models says why.";
  if (!target) return;
  prepare(target.info.task);
  showCalls();
  showSamples(target.info);
}

function about(info) {
  const { input, labels } = info;
  if (!input) return `${TASKS[info.task]}. It takes tensors, not pictures: see the calls below.`;
  const colour = input.colour === "L" ? "grey" : "colour";
  const size = input.height_px ? `${input.width_px} × ${input.height_px}` : "any size";
  const what = info.task === "matching" ? `finds ${labels[0]}, ${input.min_width_px} × ${input.min_height_px} pixels` : counted(labels.length, "class", "classes");
  return `${TASKS[info.task]}, ${what}. Looks at pictures in ${colour}, ${size}. Runs on ${provider(info.provider)}.`;
}

async function showSamples(info) {
  const key = `${info.model}/${info.version}/${info.samples}`;
  if (state.sampled === key) return;
  state.sampled = key;
  const list = byId("samples").querySelector("ul");
  byId("samples").hidden = true;
  const files = await Promise.all(Array.from({ length: info.samples }, (_, place) => sample(info, place + 1)));
  if (state.sampled !== key) return; // another model was chosen meanwhile
  list.replaceChildren(...files.filter(Boolean).map((file, place) =>
    h("li", {}, h("button", { type: "button", onclick: () => take([file]) },
      h("img", { src: URL.createObjectURL(file), alt: `Sample ${place + 1}` })))));
  byId("samples").hidden = !list.children.length;
}

async function sample(info, number) {
  try {
    const response = await ask(`/api/models/${info.model}/versions/${info.version}/samples/${number}`);
    const blob = await response.blob();
    return new File([blob], `sample ${number} of ${info.model}`, { type: blob.type });
  } catch {
    return null;
  }
}

const options = () => ({
  topK: Math.min(100, Math.max(1, Math.round(byId("top-k").valueAsNumber) || 5)),
  confidence: byId("confidence").checked,
  low: byId("low").checked,
});

function take(files) {
  if (!files.length || !state.target?.info.input) return;
  if (currentView() !== "try") location.hash = "try";
  send([...files], state.target, options());
}

function listenForPictures() {
  const drop = byId("drop");
  const pick = (id) => byId(id).addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
  pick("files");
  pick("camera");
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("photograph").addEventListener("click", photograph);
  // Anywhere: a picture that misses the frame must not replace the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take([...event.clipboardData.files]);
  });
}

/** Phones have a camera behind the file field; elsewhere the page shows what the camera sees. */
async function photograph() {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) return byId("camera").click();
  const { photographed } = await import("./camera.js");
  return photographed(take);
}

function showCalls() {
  if (!state.target) return;
  const kind = document.querySelector('[role="tab"][aria-selected="true"]').id.replace("tab-", "");
  byId("call").firstElementChild.textContent = calls(state.target, options(), state.server.grpc)[kind];
}

function listenForCalls() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const select = (tab) => {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
    }
    byId("call").setAttribute("aria-labelledby", tab.id);
    showCalls();
  };
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(place + step + tabs.length) % tabs.length];
      select(next);
      next.focus();
    });
  }
  byId("options").addEventListener("input", showCalls);
  byId("copy").addEventListener("click", async () => {
    const done = await copied(byId("call"));
    byId("copy").textContent = done ? "Copied" : "Press Ctrl C";
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 2000);
  });
}

async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch { // over plain HTTP, browsers lend the clipboard to loopback only
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}

const currentView = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : document.body.dataset.view ?? "try");

async function openView() {
  const view = currentView();
  document.body.dataset.view = view;
  for (const each of VIEWS) byId(`view-${each}`).hidden = each !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "models") await openModels();
  const live = view === "live" || state.live ? await (state.live ??= import("./live.js")) : null;
  if (currentView() === "live") live?.start(byId("live"), () => state.models);
  else live?.stop();
}

async function openModels() {
  const { show } = await import("./models.js");
  show(byId("models"), state.models, (row) => {
    const several = choices().filter((each) => each.model === row.model).length > 1;
    byId("model").value = several ? `${row.model}/${row.version}` : row.model;
    byId("model").dispatchEvent(new Event("change"));
    location.hash = "try";
    byId("model").focus();
  });
}

function listen() {
  listenForPictures();
  listenForCalls();
  byId("model").addEventListener("change", () => {
    sessionStorage.setItem("convoy.model", byId("model").value);
    choose(choices().find((each) => keyOf(each) === byId("model").value) ?? null);
  });
  byId("clear").addEventListener("click", () => {
    clear();
    byId("choose").focus();
  });
  byId("token").addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(byId("token-value").value.trim());
    byId("token-value").value = "";
    refresh();
  });
  document.addEventListener("unknown-caller", (event) => {
    if (byId("token").hidden) {
      byId("token").hidden = false;
      byId("token-value").focus();
    }
    byId("token-note").textContent = sessionStorage.getItem("convoy.token")
      ? `The server refuses this token: ${event.detail}`
      : "It stays in this tab and is forgotten when you close it.";
  });
  addEventListener("hashchange", openView);
  document.addEventListener("visibilitychange", refreshSometimes);
  setInterval(refreshSometimes, 1000);
}

function refreshSometimes() {
  if (document.visibilityState === "visible" && performance.now() - state.refreshed >= REFRESH && byId("token").hidden) refresh();
}

listen();
openView();
refresh();
