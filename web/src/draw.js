// Pictures: spectrograms, and every bit of the tokens. Colours are those of the page, light or dark.

const WINDOW = 512; // samples: 32 ms
const FLOOR_DB = -66;
const FRAME = [3, 16]; // least and most pixels of a token's width
const BIT = 2; // of an acoustic bit's height
const EMOTION_BIT = 4;
const GAP = 6; // between stages

const colour = (name) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  const full = hex.length === 3 ? [...hex].map((c) => c + c).join('') : hex;
  return [0, 2, 4].map((i) => parseInt(full.slice(i, i + 2), 16));
};

/** Spectrogram of samples, 0 to 8 kHz upwards; `peak` is the magnitude drawn darkest. Returns its peak. */
export function drawSpectrogram(canvas, audio, peak) {
  const hop = Math.max(80, Math.ceil(audio.length / 1600));
  const frames = Math.max(1, Math.floor(audio.length / hop));
  const bins = WINDOW / 2;
  const magnitude = new Float32Array(frames * bins);
  const [re, im] = [new Float32Array(WINDOW), new Float32Array(WINDOW)];
  let loudest = 1e-9;
  for (let t = 0; t < frames; t++) {
    for (let i = 0; i < WINDOW; i++) {
      const x = audio[t * hop + i - WINDOW / 2] ?? 0;
      re[i] = x * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
      im[i] = 0;
    }
    fft(re, im);
    for (let k = 0; k < bins; k++) {
      const value = Math.hypot(re[k], im[k]);
      magnitude[t * bins + k] = value;
      loudest = Math.max(loudest, value);
    }
  }
  const [paper, ink] = [colour('--paper'), colour('--ink')];
  canvas.width = frames;
  canvas.height = bins;
  const context = canvas.getContext('2d');
  const image = context.createImageData(frames, bins);
  for (let t = 0; t < frames; t++) {
    for (let k = 0; k < bins; k++) {
      const db = 20 * Math.log10(magnitude[t * bins + k] / (peak ?? loudest) + 1e-9);
      const shade = Math.max(0, Math.min(1, 1 - db / FLOOR_DB)) ;
      put(image, t, bins - 1 - k, paper.map((p, i) => p + shade * (ink[i] - p)));
    }
  }
  context.putImageData(image, 0, 0);
  return loudest;
}

/**
 * Every bit of codes [frames, stages], a band a stage; the low `emotionBits` are on top, in their colour.
 * As wide as `width` pixels where so many frames fit in and fill it.
 */
export function drawTokens(canvas, { codes, frames, stages, bits }, emotionBits, width) {
  const column = Math.max(FRAME[0], Math.min(FRAME[1], Math.floor(width / frames)));
  const band = emotionBits * EMOTION_BIT + (bits - emotionBits) * BIT + GAP;
  canvas.width = frames * column;
  canvas.height = stages * band - GAP;
  canvas.setAttribute('aria-label', `${frames} frames of ${stages} tokens of ${bits} bits`);
  const context = canvas.getContext('2d');
  const image = context.createImageData(canvas.width, canvas.height);
  const colours = ['--emotion-off', '--emotion', '--acoustic-off', '--acoustic'].map(colour);
  for (let t = 0; t < frames; t++) {
    for (let k = 0; k < stages; k++) {
      let y = k * band;
      for (let bit = 0; bit < bits; bit++) {
        const emotion = bit < emotionBits;
        const rgb = colours[(emotion ? 0 : 2) + ((codes[t * stages + k] >> bit) & 1)];
        for (let row = 0; row < (emotion ? EMOTION_BIT : BIT); row++, y++) {
          for (let x = 0; x < column; x++) put(image, t * column + x, y, rgb);
        }
      }
    }
  }
  context.putImageData(image, 0, 0);
}

function put(image, x, y, rgb) {
  const at = 4 * (y * image.width + x);
  image.data[at] = rgb[0];
  image.data[at + 1] = rgb[1];
  image.data[at + 2] = rgb[2];
  image.data[at + 3] = 255;
}

/** In-place transform of a power of two of values (Cooley & Tukey, 1965). */
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size <<= 1) {
    const half = size >> 1;
    for (let k = 0; k < half; k++) {
      const [c, s] = [Math.cos((-2 * Math.PI * k) / size), Math.sin((-2 * Math.PI * k) / size)];
      for (let i = k; i < n; i += size) {
        const [a, b] = [re[i + half] * c - im[i + half] * s, re[i + half] * s + im[i + half] * c];
        [re[i + half], im[i + half], re[i], im[i]] = [re[i] - a, im[i] - b, re[i] + a, im[i] + b];
      }
    }
  }
}
