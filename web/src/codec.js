// The codec for the page: speech to tokens to speech, with the networks in a worker.

import { amplify, attenuate, levelGain, SAMPLE_RATE } from './audio.js';
import { UserError } from './errors.js';

const worker = new Worker('worker.js');
const waiting = new Map();
let count = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new UserError(error));
  else resolve(result);
};
worker.onerror = () => {
  for (const { reject } of waiting.values()) reject(new UserError('The codec does not start in this browser.'));
  waiting.clear();
};

function call(method, ...args) {
  return new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, method, args });
  });
}

/** Loads the models; resolves to what export.json says. */
export const load = () => call('load');

/** Tokens (see afc.js) of all stages for samples at 16 kHz. */
export async function encode(card, audio) {
  const hop = card.hop_length;
  const frames = Math.ceil(audio.length / hop);
  const gainDb = levelGain(audio, card.target_db);
  const padded = new Float32Array(frames * hop);
  padded.set(amplify(audio, gainDb));
  const codes = await call('encode', padded, hop);
  return {
    codes, frames, stages: card.stages, bits: card.bits_per_code, hop, rate: SAMPLE_RATE,
    samples: audio.length, gainDb, fingerprint: card.fingerprint,
  };
}

/**
 * Samples at 16 kHz of tokens.
 * @throws {UserError} tokens of another model.
 */
export async function decode(card, tokens) {
  const { codes, frames, stages, gainDb, samples } = tokens;
  if (tokens.fingerprint !== card.fingerprint) {
    throw new UserError(`These tokens were made by model ${tokens.fingerprint}; this page has ${card.fingerprint}.`);
  }
  if (stages > card.stages || tokens.hop !== card.hop_length || tokens.bits !== card.bits_per_code) {
    throw new UserError('These tokens do not fit the model of this page.');
  }
  const full = new Int32Array(frames * card.stages).fill(-1);
  for (let t = 0; t < frames; t++) {
    full.set(codes.subarray(t * stages, (t + 1) * stages), t * card.stages);
  }
  const audio = await call('decode', full, card.stages);
  return attenuate(audio.subarray(0, samples), gainDb);
}
