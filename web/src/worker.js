// The two networks, off the page's thread. Answers {id, method, args} with {id, result} or {id, error}.

import * as ort from 'onnxruntime-web/wasm';

ort.env.wasm.wasmPaths = { wasm: new URL('ort-wasm-simd-threaded.wasm', self.location.href).href };
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.logLevel = 'error';

let encoder, decoder;

const methods = {
  /** Loads both models; returns what export.json says. */
  async load() {
    const card = await (await get('export.json')).json();
    [encoder, decoder] = await Promise.all(['encoder', 'decoder'].map(async (name) =>
      ort.InferenceSession.create(new Uint8Array(await (await get(card.files.onnx[name])).arrayBuffer()))));
    return card;
  },

  /** Codes [frames, stages] of levelled audio, a multiple of the hop long. */
  async encode(audio, hop) {
    const { codes } = await encoder.run({ audio: new ort.Tensor('float32', audio, [audio.length / hop, hop]) });
    return codes.data;
  },

  /** Levelled audio of codes [frames, stages] with -1 for stages left out. */
  async decode(codes, stages) {
    const { audio } = await decoder.run({ codes: new ort.Tensor('int32', codes, [codes.length / stages, stages]) });
    return audio.data;
  },
};

async function get(name) {
  const response = await fetch(new URL(`model/${name}`, self.location.href));
  if (!response.ok) {
    throw new Error(`model/${name} is missing; run python -m affectcodec_jax export web/public/model `
      + '--format onnx and npm run build');
  }
  return response;
}

self.onmessage = async ({ data: { id, method, args } }) => {
  try {
    self.postMessage({ id, result: await methods[method](...args) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
