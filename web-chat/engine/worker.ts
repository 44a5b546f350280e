// The worker: owns the device, the engine and the storage, so that the page never waits. One request at a time runs on the
// engine; `stop`, `pause` and questions about the storage come in between.

import init, { ChatEngine, WebGpu } from '../wasm/web_chat.js';
import { download, fetchPlan, readPlan, transferred } from './download';
import { EngineError } from './errors';
import type { ModelRef } from './model';
import { Pipelines } from './pipelines';
import { hurryReads } from './reads';
import type { DeviceInfo, KeptInfo, LoadedInfo, Methods, Plan, Reply, Request, WorkerEvent } from './protocol';
import { KeptModel, LocalFiles, keptIds, readNotes, removeModel, writeNotes } from './storage';

type Emit = (event: WorkerEvent) => void;
type Implementation = {
  [M in keyof Methods]: (emit: Emit, ...args: Parameters<Methods[M]>) => Promise<ReturnType<Methods[M]>>;
};

const LIMITS = [
  'maxBufferSize', 'maxStorageBufferBindingSize', 'maxComputeWorkgroupStorageSize', 'maxComputeInvocationsPerWorkgroup',
  'maxStorageBuffersPerShaderStage',
] as const;

const wasm = init();
/** How often the GPU may be lost in an answer that goes on. */
const MOST_LOSSES = 3;
interface OpenGpu { device: WebGpu; info: DeviceInfo }
let gpu: OpenGpu | undefined;
let engine: { chat: ChatEngine; files: KeptModel | LocalFiles; id: string; bytesPerToken: number; cacheBytesPerToken: number } | undefined;
let transfer: AbortController | undefined;
let isStopped = false;
/** Work on the engine, one after the other. */
let turn: Promise<unknown> = Promise.resolve();

const methods: Implementation = {
  async device() {
    return (await openGpu()).info;
  },

  bandwidth() {
    return inTurn(async () => (await openGpu()).device.copyBandwidth());
  },

  async plan(_emit, model) {
    if (model.files) {
      const plan = await readPlan(new LocalFiles(model.id, model.files));
      if (!plan) throw new EngineError('MissingFile', `there is no index of shards in ${model.id}`);
      return { ...plan, done: plan.weightBytes, isWhole: true };
    }
    const kept = await KeptModel.at(model.id);
    const plan = await planOf(model, kept, AbortSignal.timeout(60_000));
    const { done, isWhole } = await transferred(plan, kept);
    return { ...plan, done, isWhole };
  },

  async kept() {
    const list: KeptInfo[] = [];
    for (const id of await keptIds()) {
      const kept = await KeptModel.at(id);
      const plan = await readPlan(kept).catch(() => undefined);
      const isWhole = plan !== undefined && (await transferred(plan, kept)).isWhole;
      list.push({ id, bytes: await kept.bytes(), isWhole, total: plan?.weightBytes });
    }
    return list;
  },

  async download(emit, model) {
    if (transfer) throw new EngineError('Busy', 'another download is running');
    transfer = new AbortController();
    try {
      const kept = await KeptModel.at(model.id);
      const plan = await planOf(model, kept, transfer.signal);
      await download(model, kept, plan, transfer.signal, ({ done, total }) => {
        emit({ type: 'transfer', phase: 'download', done, total });
      });
    } finally {
      transfer = undefined;
    }
  },

  async pause() {
    transfer?.abort();
  },

  async remove(_emit, id) {
    if (engine?.id === id) await unload();
    await removeModel(id);
  },

  load(emit, model, options) {
    return inTurn(async () => {
      unloadNow();
      const files = model.files ? new LocalFiles(model.id, model.files) : await KeptModel.at(model.id);
      const plan = await readPlan(files);
      if (!plan) throw new EngineError('MissingFile', `the browser has no copy of ${model.id}`, 'download it first');
      const loadOnto = async ({ device, info }: OpenGpu) => {
        const about = JSON.stringify([info.vendor, info.architecture, info.description, info.features, navigator.userAgent]);
        const notes = await readNotes();
        const kept = notes?.about === about ? notes.files : {};
        const chat = await ChatEngine.load(device, files, JSON.stringify({ ...options, kept }), (done: number, total: number) => {
          emit({ type: 'transfer', phase: 'load', done, total });
        });
        const found = chat.kept();
        if (found !== JSON.stringify(kept)) await writeNotes({ about, files: JSON.parse(found) });
        return chat;
      };
      let chat: ChatEngine;
      try {
        chat = await loadOnto(await openGpu());
      } catch (thrown) {
        const error = EngineError.from(thrown);
        closeGpu();
        // A driver that refuses a kernel with subgroups may take the one without.
        if (error.kind !== 'Gpu') throw error;
        chat = await loadOnto(await openGpu(false));
      }
      const { bytesPerToken, cacheBytesPerToken } = plan;
      engine = { chat, files, id: model.id, bytesPerToken, cacheBytesPerToken };
      return (await loadedInfo())!;
    });
  },

  loaded() {
    return loadedInfo();
  },

  unload() {
    return unload();
  },

  answer(emit, input, sampling) {
    isStopped = false;
    return inTurn(async () => {
      if (!engine) throw new EngineError('NotLoaded', 'no model is loaded');
      const onText = (text: string, tokens: Uint32Array, logprobs: string | null) => {
        emit({ type: 'text', text, tokens: tokens.length, logprobs: logprobs ? JSON.parse(logprobs) : [] });
        return !isStopped;
      };
      const { chat, files } = engine;
      const settings = JSON.stringify(sampling);
      let answering = typeof input === 'string'
        ? chat.complete(input, settings, onText) : chat.answer(JSON.stringify(input), settings, onText);
      let lost: EngineError | undefined;
      for (let losses = 0; ; losses++) {
        try {
          return JSON.parse(await answering);
        } catch (thrown) {
          const error = EngineError.from(thrown);
          const isLost = error.kind === 'DeviceLost';
          if (isLost && losses < MOST_LOSSES && !isStopped) {
            lost ??= error;
            closeGpu();
            emit({ type: 'lost', message: error.message });
            answering = openGpu().then(({ device }) => chat.resume(device, files, () => {}, onText));
            continue;
          }
          if (isLost || lost) {
            unloadNow();
            closeGpu();
          }
          // What went wrong first says more than what went wrong after it.
          throw lost ?? error;
        }
      }
    });
  },

  async stop() {
    isStopped = true;
  },

  reset() {
    return inTurn(async () => engine?.chat.reset());
  },
};

async function planOf(model: ModelRef, kept: KeptModel, signal: AbortSignal): Promise<Plan> {
  try {
    return await fetchPlan(model, kept, signal);
  } catch (thrown) {
    await kept.removeIfEmpty();
    throw thrown;
  }
}

function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const result = turn.then(work);
  turn = result.catch(() => undefined);
  return result;
}

function unload(): Promise<void> {
  isStopped = true;
  return inTurn(async () => unloadNow());
}

function unloadNow(): void {
  engine?.chat.free();
  engine = undefined;
}

function closeGpu(): void {
  gpu?.device.free();
  gpu = undefined;
}

async function loadedInfo(): Promise<LoadedInfo | undefined> {
  if (!engine) return undefined;
  const { chat, id, bytesPerToken, cacheBytesPerToken } = engine;
  const heapBytes = (await wasm).memory.buffer.byteLength;
  return { id, bytesPerToken, cacheBytesPerToken, heapBytes, ...JSON.parse(chat.info()) };
}

async function openGpu(wantsSubgroups = true): Promise<OpenGpu> {
  if (gpu) return gpu;
  await wasm;
  if (!navigator.gpu) {
    throw new EngineError('NoWebGPU', 'this browser offers no WebGPU here', self.isSecureContext
      ? 'use a current Chrome, Edge, Safari or Firefox; in Chrome on Linux, WebGPU may have to be switched on in chrome://flags'
      : 'WebGPU is for pages on https or on localhost alone');
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) {
    throw new EngineError('NoGpu', 'the browser finds no GPU that it would use',
      'switch on hardware acceleration in its settings, and update the graphics driver; chrome://gpu says what is wrong');
  }
  // The text of the kernels that use them needs both.
  const subgroups =
    wantsSubgroups && adapter.features.has('subgroups') && navigator.gpu.wgslLanguageFeatures.has('subgroup_id');
  const pipelines = new Pipelines();
  takeOver(subgroups, pipelines);
  const device = await WebGpu.open(subgroups, true, pipelines);
  const { vendor, architecture, description } = adapter.info;
  const info: DeviceInfo = {
    vendor, architecture, description,
    features: [...adapter.features].sort(),
    limits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name] ?? 0])),
    ...JSON.parse(device.info()),
  };
  gpu = { device, info };
  return gpu;
}

const requestDevice = globalThis.GPUAdapter?.prototype.requestDevice;

/** The Rust side has no word for subgroups in a browser, nor for pipelines made side by side: both are done on its behalf. */
function takeOver(subgroups: boolean, pipelines: Pipelines): void {
  if (!requestDevice) return;
  GPUAdapter.prototype.requestDevice = async function (descriptor?: GPUDeviceDescriptor) {
    const requiredFeatures = [...(descriptor?.requiredFeatures ?? []), ...(subgroups ? ['subgroups' as const] : [])];
    const device = await requestDevice.call(this, { ...descriptor, requiredFeatures });
    pipelines.of(device);
    hurryReads(device);
    return device;
  };
}

function reply(message: Reply): void {
  self.postMessage(message);
}

self.onmessage = async ({ data: { id, method, args } }: MessageEvent<Request>) => {
  try {
    await wasm;
    const emit: Emit = (event) => reply({ id, event });
    const run = methods[method] as (emit: Emit, ...args: unknown[]) => Promise<unknown>;
    reply({ id, result: await run(emit, ...args) });
  } catch (thrown) {
    reply({ id, error: EngineError.from(thrown).plain() });
  }
};

export type { ModelRef };
