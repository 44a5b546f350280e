// A local server for the built page and the models, which can misbehave as a test requires.

import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join, normalize } from 'node:path';

const TYPES = {
  '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.wasm': 'application/wasm',
  '.json': 'application/json', '.bin': 'application/octet-stream', '.ts': 'text/plain', '.md': 'text/markdown',
};

/**
 * Serves folders under path prefixes, on a free port unless `port` is given.
 *
 * `server.faults` may have: `bytesPerSecond` (speed of shards), `damage` (changes a byte of the file `name`, `times` times),
 * `break` (closes the connection in the middle of this file, once), `refuseRanges`. `server.requests` lists all requests.
 */
export async function serve(folders, port = 0) {
  const faults = {};
  const requests = [];
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
    requests.push({ path, range: request.headers.range });
    const prefix = Object.keys(folders).sort((a, b) => b.length - a.length).find((prefix) => path.startsWith(prefix));
    const rest = normalize(path.slice(prefix?.length ?? 0)).replace(/^(\.\.[/\\])+/, '');
    const file = prefix && join(folders[prefix], rest.endsWith('/') || rest === '.' ? 'index.html' : rest);
    const info = file && (await stat(file).catch(() => undefined));
    // The hub also allows requests from any page.
    const headers = { 'access-control-allow-origin': '*', 'access-control-expose-headers': 'content-range' };
    if (!info?.isFile()) return response.writeHead(404, headers).end('not found');
    const name = file.split('/').at(-1);
    headers['content-type'] = TYPES[name.slice(name.lastIndexOf('.'))] ?? 'application/octet-stream';
    const isShard = name.endsWith('.bin');
    let start = 0;
    const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? '');
    if (range && !faults.refuseRanges) {
      start = Number(range[1]);
      headers['content-range'] = `bytes ${start}-${info.size - 1}/${info.size}`;
    }
    headers['content-length'] = info.size - start;
    response.writeHead(start > 0 ? 206 : 200, headers);
    if (!isShard) return response.end(await readFile(file));
    if (faults.damage?.name === name && faults.damage.times-- > 0) {
      const bytes = await readFile(file);
      bytes[bytes.length >> 1] ^= 1;
      return response.end(bytes.subarray(start));
    }
    const stream = createReadStream(file, { start, highWaterMark: 64 << 10 });
    let sent = 0;
    const begin = Date.now();
    for await (const piece of stream) {
      if (response.destroyed) return undefined;
      response.write(piece);
      sent += piece.length;
      if (faults.break === name && sent > info.size / 2) {
        delete faults.break;
        return setTimeout(() => response.destroy(), 50);
      }
      if (faults.bytesPerSecond) {
        const due = begin + (1000 * sent) / faults.bytesPerSecond;
        await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - Date.now())));
      }
    }
    return response.end();
  });
  await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));
  const origin = `http://127.0.0.1:${server.address().port}`;
  return {
    origin,
    faults,
    requests,
    /** Closes all open connections. */
    closeConnections: () => server.closeAllConnections(),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
