// Builds dist/: the page, its worker, the WebAssembly of onnxruntime and the exported models of public/model.

import { build } from 'esbuild';
import { cp, mkdir, rm } from 'node:fs/promises';
import { existsSync } from 'node:fs';

if (!existsSync('public/model/export.json')) {
  console.error('error: public/model is missing; run in the repository\n'
    + '  python -m affectcodec_jax export web/public/model --format onnx');
  process.exit(2);
}
await rm('dist', { recursive: true, force: true });
await mkdir('dist/model', { recursive: true });
const common = { bundle: true, minify: true, target: 'es2022', legalComments: 'none' };
await build({ ...common, entryPoints: ['src/main.js'], format: 'esm', outfile: 'dist/main.js' });
await build({
  ...common, entryPoints: ['src/worker.js'], format: 'iife', outfile: 'dist/worker.js',
  define: { 'import.meta.url': 'self.location.href' },
});
await build({ ...common, entryPoints: ['src/style.css'], outfile: 'dist/style.css' });
await cp('index.html', 'dist/index.html');
for (const name of ['export.json', 'encoder.onnx', 'decoder.onnx']) {
  await cp(`public/model/${name}`, `dist/model/${name}`);
}
const wasm = 'ort-wasm-simd-threaded.wasm';
await cp(`node_modules/onnxruntime-web/dist/${wasm}`, `dist/${wasm}`);
