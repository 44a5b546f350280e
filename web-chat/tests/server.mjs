// A server on this machine: the built page, and models with the faults that a test asks for.

import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join, normalize } from 'node:path';

const TYPES = {
  '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.wasm': 'application/wasm',
  '.json': 'application/json', '.bin': 'application/octet-stream', '.ts': 'text/plain', '.md': 'text/markdown',
};

/**
 * Serves folders under path prefixes.
 *
 * `server.faults` may have: `bytesPerSecond` (of shards), `damage` (a name whose bytes are changed, as often as `times`
 * says), `break` (a name whose connection ends in the middle, once), `refuseRanges`. `server.requests` lists what was asked.
 */
export async function serve(folders) {
  const faults = {};
  const requests = [];
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
    requests.push({ path, range: request.headers.range });
    const prefix = Object.keys(folders).sort((a, b) => b.length - a.length).find((prefix) => path.startsWith(prefix));
    const rest = normalize(path.slice(prefix?.length ?? 0)).replace(/^(\.\.[/\\])+/, '');
    const file = prefix && join(folders[prefix], rest.endsWith('/') || rest === '.' ? 'index.html' : rest);
    const info = file && (await stat(file).catch(() => undefined));
    // As the hub does: models may be fetched from any page.
    const headers = { 'access-control-allow-origin': '*', 'access-control-expose-headers': 'content-range' };
    if (!info?.isFile()) return response.writeHead(404, headers).end('not found');
    const name = file.split('/').at(-1);
    headers['content-type'] = TYPES[name.slice(name.lastIndexOf('.'))] ?? 'application/octet-stream';
    const isShard = name.endsWith('.bin');
    let start = 0;
    const asked = /^bytes=(\d+)-$/.exec(request.headers.range ?? '');
    if (asked && !faults.refuseRanges) {
      start = Number(asked[1]);
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
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const origin = `http://127.0.0.1:${server.address().port}`;
  return {
    origin,
    faults,
    requests,
    /** Breaks every transfer. */
    closeConnections: () => server.closeAllConnections(),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
