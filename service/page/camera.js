// What the camera sees, and a picture of it.

import { h } from "./dom.js";

/** Opens the camera; gives the picture that was made as a file to `take`. */
export async function photographed(take) {
  const video = h("video", { autoplay: true, playsinline: true, "aria-label": "What the camera sees" });
  video.muted = true;
  const words = h("p", { class: "small", role: "status" }, "Asking for the camera …");
  const shoot = h("button", { type: "button", class: "primary", disabled: true }, "Take the picture");
  const dialog = h("dialog", { class: "panel", "aria-label": "Camera" }, video, words,
    h("div", { class: "row" }, shoot, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
  let stream = null;
  dialog.addEventListener("close", () => {
    for (const track of stream?.getTracks() ?? []) track.stop();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch (error) {
    words.textContent = `No camera: ${error.message}`;
    return;
  }
  if (!dialog.open) {
    for (const track of stream.getTracks()) track.stop();
    return;
  }
  video.srcObject = stream;
  await video.play();
  words.textContent = "";
  shoot.disabled = false;
  shoot.addEventListener("click", async () => {
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    take([new File([blob], "photo.jpg", { type: "image/jpeg" })]);
  });
}
