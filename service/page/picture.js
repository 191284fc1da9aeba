// Pictures in the browser: what to do with files that the server does not read, and their pixels.

/** Returns any picture that this browser reads as a PNG file, upright and on white. Throws where it cannot read it. */
export async function toPng(file) {
  const canvas = await drawn(file);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("the picture is too large for this browser");
  return blob;
}

/** Returns {height, width, channels, data}: RGB, or grey (luma, ITU-R BT.601) where `colour` is "L". */
export async function pixels(file, colour) {
  const canvas = await drawn(file);
  const { width, height } = canvas;
  const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const channels = colour === "L" ? 1 : 3;
  const data = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 1) {
      data[to++] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16;
    } else {
      data[to++] = red;
      data[to++] = green;
      data[to++] = blue;
    }
  }
  return { height, width, channels, data };
}

/** Returns the bytes of a grey picture. */
export async function grey(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  return Uint8Array.from({ length: rgba.length / 4 }, (_, place) => rgba[4 * place]);
}

async function drawn(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}
