// A model from the network to the browser's storage: shards in parallel, each resumed where it stopped and checked against
// the checksum of the index. What arrives goes to the disk piece by piece; nothing is held whole.

import { Checksum, plan as planOf } from '../wasm/web_chat.js';
import { EngineError } from './errors';
import type { ModelRef } from './model';
import type { Plan, Shard } from './protocol';
import type { KeptModel } from './storage';

export interface Transfer {
  /** Bytes of shards that are in the storage. */
  done: number;
  total: number;
}

const CONFIG = 'mlc-chat-config.json';
const INDEX_NAMES = ['tensor-cache.json', 'ndarray-cache.json'];
const REQUIRED = [CONFIG, 'tokenizer.json'];
const PARALLEL = 3;
/** Seconds between attempts. */
const BACKOFF = [0.5, 1, 2, 4];

interface TextFiles {
  text(name: string): Promise<string | undefined>;
}

/** The plan of a model whose small files are there; `undefined` while they are not. */
export async function readPlan(files: TextFiles): Promise<Plan | undefined> {
  const config = await files.text(CONFIG);
  for (const name of INDEX_NAMES) {
    const index = await files.text(name);
    if (config !== undefined && index !== undefined) return JSON.parse(planOf(config, name, index)) as Plan;
  }
  return undefined;
}

/** Fetches the two small files, so that size and needs are known before anything large is. */
export async function fetchPlan(model: ModelRef, kept: KeptModel, signal: AbortSignal): Promise<Plan> {
  const known = await readPlan(kept);
  if (known) return known;
  const config = await fetchSmall(model, CONFIG, signal);
  if (!config) {
    throw new EngineError('NotFound', `there is no \`${CONFIG}\` at ${model.id}`, 'name the repository of a model in MLC format: their names end in -MLC');
  }
  for (const name of INDEX_NAMES) {
    const index = await fetchSmall(model, name, signal);
    if (!index) continue;
    const decoder = new TextDecoder();
    // What the engine would refuse is refused before it is downloaded.
    const plan = JSON.parse(planOf(decoder.decode(config), name, decoder.decode(index))) as Plan;
    await kept.write(CONFIG, config);
    await kept.write(name, index);
    return plan;
  }
  throw new EngineError('NotFound', `there is no \`${INDEX_NAMES[0]}\` at ${model.id}`, 'the folder is incomplete: upload it again');
}

/** How much of a model is in the storage. */
export async function transferred(plan: Plan, kept: KeptModel): Promise<Transfer & { isWhole: boolean }> {
  let done = 0;
  let isWhole = (await kept.size('tokenizer.json')) !== undefined;
  for (const shard of plan.shards) {
    const progress = await kept.progress(shard.name);
    done += Math.min(progress.bytes, shard.bytes);
    isWhole &&= progress.isWhole && progress.bytes === shard.bytes;
  }
  return { done, total: plan.weightBytes, isWhole };
}

/** Downloads what is missing of a model. */
export async function download(
  model: ModelRef,
  kept: KeptModel,
  plan: Plan,
  signal: AbortSignal,
  onProgress: (transfer: Transfer) => void,
): Promise<void> {
  for (const name of plan.textFiles) {
    if ((await kept.size(name)) !== undefined) continue;
    const bytes = await fetchSmall(model, name, signal);
    if (bytes) await kept.write(name, bytes);
    else if (REQUIRED.includes(name)) throw new EngineError('NotFound', `there is no \`${name}\` at ${model.id}`);
  }

  const done = new Map<string, number>();
  const report = (shard: Shard, bytes: number) => {
    done.set(shard.name, bytes);
    onProgress({ done: [...done.values()].reduce((sum, one) => sum + one, 0), total: plan.weightBytes });
  };
  const waiting: Shard[] = [];
  for (const shard of plan.shards) {
    const { bytes, isWhole } = await kept.progress(shard.name);
    if (isWhole && bytes === shard.bytes) {
      report(shard, bytes);
      continue;
    }
    if (isWhole) await kept.discard(shard.name);
    done.set(shard.name, isWhole ? 0 : Math.min(bytes, shard.bytes));
    waiting.push(shard);
  }
  // The first failure ends the other transfers too.
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const loops = Array.from({ length: Math.min(PARALLEL, waiting.length) }, async () => {
    for (let shard = waiting.shift(); shard; shard = waiting.shift()) {
      await fetchShard(model, kept, shard, either, report);
    }
  });
  try {
    await Promise.all(loops);
  } catch (thrown) {
    stop.abort();
    await Promise.allSettled(loops);
    throw signal.aborted ? paused() : thrown;
  }
}

async function fetchShard(
  model: ModelRef,
  kept: KeptModel,
  shard: Shard,
  signal: AbortSignal,
  report: (shard: Shard, bytes: number) => void,
): Promise<void> {
  const part = await kept.part(shard.name);
  const sum = { of: new Checksum() };
  try {
    if (part.length > shard.bytes) part.truncate(0);
    for (const piece of part.pieces()) sum.of.update(piece);
    for (let damaged = 0; ; damaged++) {
      await fetchRest(model, shard, part, sum, signal, report);
      const found = sum.of.finish();
      sum.of = new Checksum();
      if (shard.md5 === null || found === shard.md5) break;
      part.truncate(0);
      if (damaged > 0) {
        throw new EngineError('DamagedFile', `\`${shard.name}\` has checksum ${found}, expected ${shard.md5}`,
          'it arrived damaged twice: the copy on the server is broken, or something on the way changes it');
      }
    }
    await part.finish();
  } finally {
    sum.of.free();
    part.close();
  }
}

/** Appends what a shard lacks, trying again where the network fails. */
async function fetchRest(
  model: ModelRef,
  shard: Shard,
  part: { length: number; append(bytes: Uint8Array): void; truncate(size: number): void },
  sum: { of: Checksum },
  signal: AbortSignal,
  report: (shard: Shard, bytes: number) => void,
): Promise<void> {
  for (let attempt = 0; part.length < shard.bytes; ) {
    const before = part.length;
    try {
      const response = await request(model, shard.name, part.length, signal);
      if (!response) throw new EngineError('NotFound', `there is no \`${shard.name}\` at ${model.id}`);
      if (part.length > 0 && !continues(response, part.length)) {
        // The server sends the whole file.
        part.truncate(0);
        sum.of.free();
        sum.of = new Checksum();
      }
      const reader = response.body!.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        if (part.length + value.length > shard.bytes) {
          await reader.cancel();
          part.truncate(0);
          throw new EngineError('DamagedFile', `\`${shard.name}\` is longer than its index says`, 'its index and its shards do not belong together');
        }
        part.append(value);
        sum.of.update(value);
        report(shard, part.length);
      }
      if (part.length < shard.bytes) throw new TypeError('the connection ended early');
    } catch (thrown) {
      if (signal.aborted) throw paused();
      if (thrown instanceof EngineError && thrown.kind !== 'Network') throw thrown;
      if (!(thrown instanceof EngineError) && !(thrown instanceof TypeError)) throw thrown;
      // A connection that brought something is worth another try.
      attempt = part.length > before ? 0 : attempt + 1;
      const wait = BACKOFF[attempt];
      if (wait === undefined) throw networkError(shard.name, thrown);
      await delay(wait, signal);
    }
  }
}

function continues(response: Response, from: number): boolean {
  return response.status === 206 && (response.headers.get('content-range') ?? `bytes ${from}-`).startsWith(`bytes ${from}-`);
}

async function request(model: ModelRef, name: string, from: number, signal: AbortSignal): Promise<Response | undefined> {
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]*$/.test(name)) throw new EngineError('DamagedFile', `${JSON.stringify(name)} is no file name`);
  const headers: HeadersInit = from > 0 ? { range: `bytes=${from}-` } : {};
  // Kept once, in our own storage.
  const response = await fetch(model.base + name, { headers, signal, cache: 'no-store', credentials: 'omit' });
  if (response.status === 404) return undefined;
  if (response.status === 401 || response.status === 403) {
    throw new EngineError('NotFound', `not everyone may have ${model.id} (${response.status})`, 'check the name; gated models have to be downloaded elsewhere and dropped here as a folder');
  }
  if (response.status === 429 || response.status >= 500) throw new EngineError('Network', `the server says ${response.status}`);
  if (!response.ok || !response.body) throw new EngineError('NotFound', `the server says ${response.status} to \`${name}\``);
  return response;
}

async function fetchSmall(model: ModelRef, name: string, signal: AbortSignal): Promise<Uint8Array<ArrayBuffer> | undefined> {
  for (let attempt = 0; ; attempt++) {
    try {
      const response = await request(model, name, 0, signal);
      if (!response) return undefined;
      const bytes = new Uint8Array(await response.arrayBuffer());
      // A server that answers everything with its front page has no such file.
      if (name.endsWith('.json')) JSON.parse(new TextDecoder().decode(bytes));
      return bytes;
    } catch (thrown) {
      if (signal.aborted) throw paused();
      if (thrown instanceof SyntaxError) return undefined;
      const isNetwork = thrown instanceof TypeError || (thrown instanceof EngineError && thrown.kind === 'Network');
      const wait = BACKOFF[attempt];
      if (!isNetwork) throw thrown;
      if (wait === undefined) throw networkError(name, thrown as Error);
      await delay(wait, signal);
    }
  }
}

function networkError(name: string, cause: Error): EngineError {
  return new EngineError('Network', `\`${name}\` could not be fetched: ${cause.message}`,
    'check the connection and go on: what has arrived is kept');
}

function paused(): EngineError {
  return new EngineError('Paused', 'the download is paused');
}

function delay(seconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(paused());
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', stop);
      resolve();
    }, seconds * 1000);
    signal.addEventListener('abort', stop, { once: true });
  });
}
