// Downloads a model to the browser's storage: shards in parallel, each resumable and compared with the checksum in the
// index. Data goes to the disk in pieces, so no file is in memory as a whole.

import { Checksum, plan as planOf } from '../wasm/web_chat.js';
import { EngineError } from './errors';
import type { ModelRef } from './model';
import type { Plan, Shard } from './protocol';
import type { StoredModel } from './storage';

export interface Transfer {
  /** Stored bytes of the shards. */
  done: number;
  total: number;
}

const CONFIG = 'mlc-chat-config.json';
const INDEX_NAMES = ['tensor-cache.json', 'ndarray-cache.json'];
const REQUIRED = [CONFIG, 'tokenizer.json'];
const PARALLEL = 3;
/** Pauses between attempts, in seconds. */
const BACKOFF = [0.5, 1, 2, 4];

interface TextFiles {
  text(name: string): Promise<string | undefined>;
}

/** The plan of a model, or `undefined` if its configuration or its index is missing. */
export async function readPlan(files: TextFiles): Promise<Plan | undefined> {
  const config = await files.text(CONFIG);
  for (const name of INDEX_NAMES) {
    const index = await files.text(name);
    if (config !== undefined && index !== undefined) return JSON.parse(planOf(config, name, index)) as Plan;
  }
  return undefined;
}

/** Fetches configuration and index, so that the model's size and memory are known before the download. */
export async function fetchPlan(model: ModelRef, stored: StoredModel, signal: AbortSignal): Promise<Plan> {
  const known = await readPlan(stored);
  if (known) return known;
  const config = await fetchSmall(model, CONFIG, signal);
  if (!config) {
    throw new EngineError('NotFound', `\`${CONFIG}\` is missing at ${model.id}`, 'enter the repository of a model in MLC format; most names end in `-MLC`');
  }
  for (const name of INDEX_NAMES) {
    const index = await fetchSmall(model, name, signal);
    if (!index) continue;
    const decoder = new TextDecoder();
    // Throws if the engine cannot run the model, before anything large is downloaded.
    const plan = JSON.parse(planOf(decoder.decode(config), name, decoder.decode(index))) as Plan;
    await stored.write(CONFIG, config);
    await stored.write(name, index);
    return plan;
  }
  throw new EngineError('NotFound', `\`${INDEX_NAMES[0]}\` is missing at ${model.id}`, 'upload the folder again: it is incomplete');
}

/** The stored part of a model. */
export async function transferred(plan: Plan, stored: StoredModel): Promise<Transfer & { isWhole: boolean }> {
  let done = 0;
  let isWhole = (await stored.size('tokenizer.json')) !== undefined;
  for (const shard of plan.shards) {
    const progress = await stored.progress(shard.name);
    done += Math.min(progress.bytes, shard.bytes);
    isWhole &&= progress.isWhole && progress.bytes === shard.bytes;
  }
  return { done, total: plan.weightBytes, isWhole };
}

/** Downloads the missing files of a model. */
export async function download(
  model: ModelRef,
  stored: StoredModel,
  plan: Plan,
  signal: AbortSignal,
  onProgress: (transfer: Transfer) => void,
): Promise<void> {
  for (const name of plan.textFiles) {
    if ((await stored.size(name)) !== undefined) continue;
    const bytes = await fetchSmall(model, name, signal);
    if (bytes) await stored.write(name, bytes);
    else if (REQUIRED.includes(name)) throw new EngineError('NotFound', `\`${name}\` is missing at ${model.id}`);
  }

  const done = new Map<string, number>();
  const report = (shard: Shard, bytes: number) => {
    done.set(shard.name, bytes);
    onProgress({ done: [...done.values()].reduce((sum, one) => sum + one, 0), total: plan.weightBytes });
  };
  const pending: Shard[] = [];
  for (const shard of plan.shards) {
    const { bytes, isWhole } = await stored.progress(shard.name);
    if (isWhole && bytes === shard.bytes) {
      report(shard, bytes);
      continue;
    }
    if (isWhole) await stored.discard(shard.name);
    done.set(shard.name, isWhole ? 0 : Math.min(bytes, shard.bytes));
    pending.push(shard);
  }
  // The first failure also stops the other transfers.
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const loops = Array.from({ length: Math.min(PARALLEL, pending.length) }, async () => {
    for (let shard = pending.shift(); shard; shard = pending.shift()) {
      await fetchShard(model, stored, shard, either, report);
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

/** Downloads a shard and compares its checksum; a damaged shard is downloaded a second time. */
async function fetchShard(
  model: ModelRef,
  stored: StoredModel,
  shard: Shard,
  signal: AbortSignal,
  report: (shard: Shard, bytes: number) => void,
): Promise<void> {
  const part = await stored.part(shard.name);
  const sum = { of: new Checksum() };
  try {
    if (part.length > shard.bytes) part.truncate(0);
    for (const piece of part.pieces()) sum.of.update(piece);
    for (let attempt = 0; ; attempt++) {
      await fetchRest(model, shard, part, sum, signal, report);
      const found = sum.of.finish();
      sum.of = new Checksum();
      if (shard.md5 === null || found === shard.md5) break;
      part.truncate(0);
      if (attempt > 0) {
        throw new EngineError('DamagedFile', `\`${shard.name}\` has checksum ${found}, expected ${shard.md5}`,
          'two downloads were damaged: upload the file again, or look for a proxy that changes it');
      }
    }
    await part.finish();
  } finally {
    sum.of.free();
    part.close();
  }
}

/** Downloads the missing end of a shard. Network errors are retried. */
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
      if (!response) throw new EngineError('NotFound', `\`${shard.name}\` is missing at ${model.id}`);
      if (part.length > 0 && !continues(response, part.length)) {
        // The server ignored the range and sends the whole file.
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
          throw new EngineError('DamagedFile', `\`${shard.name}\` is longer than its size in the index`, 'upload the folder again: index and shards do not match');
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
      // Data arrived: count the attempts from zero again.
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
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]*$/.test(name)) throw new EngineError('DamagedFile', `${JSON.stringify(name)} is not a file name`);
  const headers: HeadersInit = from > 0 ? { range: `bytes=${from}-` } : {};
  // Bypass the browser's cache, which would store the file a second time.
  const response = await fetch(model.base + name, { headers, signal, cache: 'no-store', credentials: 'omit' });
  if (response.status === 404) return undefined;
  if (response.status === 401 || response.status === 403) {
    throw new EngineError('NotFound', `access to ${model.id} was denied (status ${response.status})`, 'check the name; download a gated model with another program and drop its folder on the page');
  }
  if (response.status === 429 || response.status >= 500) throw new EngineError('Network', `the server answered with status ${response.status}`);
  if (!response.ok || !response.body) throw new EngineError('NotFound', `the server answered with status ${response.status} for \`${name}\``);
  return response;
}

async function fetchSmall(model: ModelRef, name: string, signal: AbortSignal): Promise<Uint8Array<ArrayBuffer> | undefined> {
  for (let attempt = 0; ; attempt++) {
    try {
      const response = await request(model, name, 0, signal);
      if (!response) return undefined;
      const bytes = new Uint8Array(await response.arrayBuffer());
      // Some servers answer with their front page instead of 404.
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
    'check the connection and try again: the downloaded part is stored');
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
