// A static file server on loopback: `node serve.js [PORT]` serves dist/. Any other does as well.

import { createServer } from 'node:http';
import { access, readFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('dist/', import.meta.url));
const TYPES = {
  '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
  '.wasm': 'application/wasm',
};

/** Serves dist/; resolves to {url, close}. */
export async function serve(port = 0) {
  const server = createServer(async (request, response) => {
    try {
      // Whatever is asked for: a path that is no URL throws, too.
      const wanted = decodeURIComponent(new URL(request.url, 'http://localhost').pathname).replace(/\/$/, '/index.html');
      const file = path.join(ROOT, wanted);
      if (!file.startsWith(ROOT)) throw new Error('outside');
      const body = await readFile(file);
      response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await access(path.join(ROOT, 'index.html')).catch(() => {
    console.error('there is no dist/ to serve yet; make it by `npm run build`');
    process.exit(2);
  });
  const port = process.argv[2] ?? 8000;
  try {
    console.log((await serve(Number(port))).url);
  } catch (error) {
    console.error(`port ${port}: cannot be served on (${error.code ?? error.message}); give another one`);
    process.exit(2);
  }
}
