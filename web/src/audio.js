// Reading, levelling and writing speech, as affectcodec_jax/audio.py does: mono float32 at 16 kHz.

import { UserError } from './errors.js';

export const SAMPLE_RATE = 16000;
export const MAX_SECONDS = 120; // all of it is computed at once
const GATE = 1e-3; // 30 dB: frames this far below the loudest one count as pauses
const GATE_FRAME = 320; // samples

/**
 * Samples of a file: a WAV of 16 kHz as it is, anything else by the browser's decoder and resampler.
 * @throws {UserError} not audio, too short, too long.
 */
export async function readAudio(bytes) {
  const wav = readWav(bytes);
  const audio = wav?.rate === SAMPLE_RATE ? mono(wav.channels) : await decode(bytes);
  if (audio.length < GATE_FRAME) throw new UserError('This recording is too short: it has less than 20 ms.');
  if (audio.length > MAX_SECONDS * SAMPLE_RATE) {
    throw new UserError(`This recording is longer than ${MAX_SECONDS} s; use python -m affectcodec_jax encode.`);
  }
  if (!audio.every(Number.isFinite)) throw new UserError('This recording holds samples that are not numbers.');
  return audio;
}

async function decode(bytes) {
  try {
    const context = new OfflineAudioContext(1, 1, SAMPLE_RATE); // decodes to its own rate
    const buffer = await context.decodeAudioData(bytes.slice().buffer);
    return mono(Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i)));
  } catch {
    throw new UserError('This is not a recording that the browser can read; give WAV, FLAC, OGG, MP3 or M4A.');
  }
}

function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, c) => Math.fround(sum + c[i]), 0) / channels.length);
}

/** {rate, channels} of a WAV of integers or floats; null for anything else. */
function readWav(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const name = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length < 44 || name(0) !== 'RIFF' || name(8) !== 'WAVE') return null;
  let format = null;
  for (let at = 12; at + 8 <= bytes.length;) {
    const size = view.getUint32(at + 4, true);
    if (name(at) === 'fmt ' && at + 24 <= bytes.length) {
      const tag = view.getUint16(at + 8, true);
      format = {
        kind: tag === 0xfffe && size >= 26 ? view.getUint16(at + 32, true) : tag, // 1 integers, 3 floats
        count: view.getUint16(at + 10, true), rate: view.getUint32(at + 12, true),
        bits: view.getUint16(at + 22, true),
      };
    } else if (name(at) === 'data' && format) {
      const read = sampleReader(view, format);
      if (!read || !format.count) return null;
      const step = format.bits / 8;
      // A recorder that was killed leaves a size of 0: all there is, as the package reads it.
      const length = Math.floor(Math.min(size || Infinity, bytes.length - at - 8) / (step * format.count));
      return {
        rate: format.rate,
        channels: Array.from({ length: format.count }, (_, c) => Float32Array.from(
          { length }, (_, i) => read(at + 8 + (i * format.count + c) * step))),
      };
    }
    at += 8 + size + (size & 1);
  }
  return null;
}

function sampleReader(view, { kind, bits }) {
  return {
    '1/8': (at) => (view.getUint8(at) - 128) / 128,
    '1/16': (at) => view.getInt16(at, true) / 32768,
    '1/24': (at) => (view.getUint16(at, true) | (view.getInt8(at + 2) << 16)) / 8388608,
    '1/32': (at) => view.getInt32(at, true) / 2147483648,
    '3/32': (at) => view.getFloat32(at, true),
    '3/64': (at) => view.getFloat64(at, true),
  }[`${kind}/${bits}`];
}

/** Gain in dB that brings the active level of speech to `targetDb` without clipping; 0 for silence. */
export function levelGain(audio, targetDb) {
  const energy = [];
  let peak = 0;
  for (let start = 0; start < audio.length; start += GATE_FRAME) {
    let sum = 0;
    for (const x of audio.subarray(start, start + GATE_FRAME)) {
      sum += x * x;
      peak = Math.max(peak, Math.abs(x));
    }
    energy.push(sum / GATE_FRAME);
  }
  const gate = Math.max(energy.reduce((a, b) => Math.max(a, b)) * GATE, 1e-12);
  const active = energy.filter((e) => e >= gate);
  if (!active.length) return 0;
  const level = 10 * Math.log10(active.reduce((a, b) => a + b) / active.length);
  return Math.min(targetDb - level, -0.1 - Math.fround(20 * Math.fround(Math.log10(peak))));
}

/** Samples times, or over, the factor of a gain in dB: float32 as the package computes it. */
export function amplify(audio, gainDb) {
  const factor = Math.fround(10 ** (gainDb / 20));
  return audio.map((x) => x * factor);
}

export function attenuate(audio, gainDb) {
  const factor = Math.fround(10 ** (gainDb / 20));
  return audio.map((x) => x / factor);
}

/** Bytes of a WAV of 16-bit PCM. */
export function writeWav(audio) {
  const bytes = new Uint8Array(44 + 2 * audio.length);
  const view = new DataView(bytes.buffer);
  const text = (at, s) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, 'RIFF');
  view.setUint32(4, 36 + 2 * audio.length, true);
  text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, 2 * SAMPLE_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, 'data');
  view.setUint32(40, 2 * audio.length, true);
  audio.forEach((x, i) => view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, x)) * 32767), true));
  return bytes;
}
