// COCO's compressed run lengths, as pycocotools reads them.

/** Returns the lengths of the runs, in turn outside and inside the class, down the columns. */
export function runs(counts) {
  const lengths = [];
  let place = 0;
  while (place < counts.length) {
    // Five bits in each character, the lowest first; the sixth says that there are more. Arithmetic, not shifts: 32 bits
    // would not do for the largest pictures.
    let value = 0;
    let unit = 1;
    let bits;
    do {
      if (place >= counts.length) throw new RangeError("run lengths are cut off");
      bits = counts.charCodeAt(place++) - 48;
      if (bits < 0 || bits > 63) throw new RangeError("run lengths have a wrong character");
      value += (bits & 31) * unit;
      unit *= 32;
    } while (bits & 32);
    if (bits & 16) value -= unit; // it is negative
    if (lengths.length > 2) value += lengths[lengths.length - 2]; // only the difference is stored
    lengths.push(value);
  }
  return lengths;
}

/** Returns the class of each pixel, row by row, as bytes. `classes` are {class_index, counts}. */
export function mask(height, width, classes) {
  const pixels = new Uint8Array(height * width);
  for (const { class_index: index, counts } of classes) {
    let place = 0;
    let inside = false;
    for (const length of runs(counts)) {
      if (inside) fill(pixels, height, width, place, place + length, index);
      place += length;
      inside = !inside;
    }
    if (place !== height * width) throw new RangeError(`run lengths are of ${place} pixels, want ${height * width}`);
  }
  return pixels;
}

function fill(pixels, height, width, begin, end, value) {
  let row = begin % height;
  let at = row * width + Math.floor(begin / height);
  for (let place = begin; place < end; place++) {
    pixels[at] = value;
    row++;
    at += width;
    if (row === height) {
      row = 0;
      at += 1 - height * width;
    }
  }
}
