// Gray light, labels over it in their hues, doubt as a haze: one pass over the pixels of a field.
//
// Where labels overlap, as nuclei lie in cells, the sum of their hues is cream: so the first label covers the
// second, and so on, the more the stronger it is. Each is shown up to the brightest there is of it in the run.

// Doubt is one standard deviation of a prediction between 0 and 1. Every prediction has some: the haze begins
// where it becomes worth a look, and is complete at a third.
const LEAST_DOUBT = 0.1;
const FULL_DOUBT = 0.33;
const HAZE = [150, 154, 166];
const MOST_HAZE = 0.85;
const scratch = document.createElement("canvas");

/** JPEG bytes as {width, height, data: Uint8 gray}. */
export async function decode(jpeg) {
  const bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  const { width, height } = bitmap;
  scratch.width = width;
  scratch.height = height;
  const context = scratch.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height);
  for (let i = 0; i < data.length; i++) data[i] = rgba[4 * i];
  return { width, height, data };
}

export function rgb(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}

/** Gray values 0-255 of a measured picture on another range of counts. */
function grayTable(light, range, strength) {
  const { low, high } = light.event;
  const [from, to] = range;
  const table = new Uint8ClampedArray(256);
  for (let v = 0; v < 256; v++) {
    table[v] = (strength * 255 * (low + (v / 255) * (high - low) - from)) / Math.max(to - from, 1);
  }
  return table;
}

/** How far a label covers what lies under it, by its value 0-255: squared, so that what is faint hides nothing. */
function coverTable(top, opacity) {
  const table = new Float32Array(256);
  for (let v = 0; v < 256; v++) table[v] = Math.min(v / top, 1) ** 2 * opacity;
  return table;
}

/**
 * Compose a field of a run.
 * look: {light, labels: [{on, opacity}], doubt: {on, opacity}}; every n-th pixel with step.
 */
export function compose(field, run, look, step = 1) {
  const { labels, range, tops } = run;
  const { light, predicted } = field;
  const first = light ? light.picture : predicted ? predicted.means[0] : null;
  if (!first) return null;
  const width = Math.floor(first.width / step);
  const height = Math.floor(first.height / step);
  const picture = new ImageData(width, height);
  const out = picture.data;
  const gray = light ? grayTable(light, range || [light.event.low, light.event.high], look.light.on ? look.light.opacity : 0) : null;
  const layers = [];
  if (predicted && predicted.means[0].width === first.width) {
    predicted.event.labels.forEach((name, index) => {
      const at = labels.findIndex((label) => label.name === name);
      const set = look.labels[at];
      if (set && set.on) layers.unshift({ data: predicted.means[index].data, hue: rgb(labels[at].color), cover: coverTable(tops.get(name) ?? 255, set.opacity) });
    });
  }
  const doubt = predicted && layers.length && look.doubt.on && predicted.doubt.width === first.width ? predicted.doubt.data : null;
  const haze = new Float32Array(256);
  for (let v = 0; v < 256; v++) haze[v] = Math.min(Math.max(v / 255 - LEAST_DOUBT, 0) / (FULL_DOUBT - LEAST_DOUBT), 1) * MOST_HAZE * look.doubt.opacity;
  for (let y = 0, o = 0; y < height; y++) {
    for (let x = 0; x < width; x++, o += 4) {
      const i = y * step * first.width + x * step;
      const g = gray ? gray[light.picture.data[i]] : 0;
      let r = g, gr = g, b = g;
      for (const { data, hue, cover } of layers) {
        const a = cover[data[i]];
        r += (hue[0] - r) * a; gr += (hue[1] - gr) * a; b += (hue[2] - b) * a;
      }
      if (doubt) {
        const a = haze[doubt[i]];
        r += (HAZE[0] - r) * a; gr += (HAZE[1] - gr) * a; b += (HAZE[2] - b) * a;
      }
      out[o] = r; out[o + 1] = gr; out[o + 2] = b; out[o + 3] = 255;
    }
  }
  return picture;
}

/** A measured picture, black to its label's hue or to white. */
export function tinted(plane, color) {
  const { picture } = plane;
  const image = new ImageData(picture.width, picture.height);
  const hue = color ? rgb(color) : [255, 255, 255];
  for (let i = 0, o = 0; i < picture.data.length; i++, o += 4) {
    const v = picture.data[i] / 255;
    image.data[o] = hue[0] * v; image.data[o + 1] = hue[1] * v; image.data[o + 2] = hue[2] * v; image.data[o + 3] = 255;
  }
  return image;
}

export function put(canvas, picture) {
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
