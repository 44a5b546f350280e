// The worker: owns the device, the engine and the storage, so that the page never blocks. The engine handles one request at
// a time. `stop`, `pause` and requests about the storage are handled at once.

import init, { ChatEngine, WebGpu } from '../wasm/web_chat.js';
import { download, fetchPlan, readPlan, transferred } from './download';
import { EngineError } from './errors';
import type { ModelRef } from './model';
import { Pipelines } from './pipelines';
import { pollReads } from './reads';
import type { DeviceInfo, KeptInfo, LoadedInfo, Methods, Plan, Reply, Request, WorkerEvent } from './protocol';
import { LocalFiles, StoredModel, readAdapterCache, removeModel, storedIds, writeAdapterCache } from './storage';

type Emit = (event: WorkerEvent) => void;
type Implementation = {
  [M in keyof Methods]: (emit: Emit, ...args: Parameters<Methods[M]>) => Promise<ReturnType<Methods[M]>>;
};

const LIMITS = [
  'maxBufferSize', 'maxStorageBufferBindingSize', 'maxComputeWorkgroupStorageSize', 'maxComputeInvocationsPerWorkgroup',
  'maxStorageBuffersPerShaderStage',
] as const;

const wasm = init();
/** An answer continues after at most this many losses of the GPU. */
const MAX_DEVICE_LOSSES = 3;
interface OpenGpu { device: WebGpu; info: DeviceInfo }
let gpu: OpenGpu | undefined;
let engine: { chat: ChatEngine; files: StoredModel | LocalFiles; id: string; bytesPerToken: number; cacheBytesPerToken: number } | undefined;
let transfer: AbortController | undefined;
let isStopped = false;
/** Resolves when the queued work on the engine is done. */
let queue: Promise<unknown> = Promise.resolve();

const methods: Implementation = {
  async device() {
    return (await openGpu()).info;
  },

  bandwidth() {
    return enqueue(async () => (await openGpu()).device.copyBandwidth());
  },

  async plan(_emit, model) {
    if (model.files) {
      const plan = await readPlan(new LocalFiles(model.id, model.files));
      if (!plan) throw new EngineError('MissingFile', `\`tensor-cache.json\` is missing in ${model.id}`);
      return { ...plan, done: plan.weightBytes, isWhole: true };
    }
    const stored = await StoredModel.at(model.id);
    const plan = await planOf(model, stored, AbortSignal.timeout(60_000));
    const { done, isWhole } = await transferred(plan, stored);
    return { ...plan, done, isWhole };
  },

  async kept() {
    const list: KeptInfo[] = [];
    for (const id of await storedIds()) {
      const stored = await StoredModel.at(id);
      const plan = await readPlan(stored).catch(() => undefined);
      const isWhole = plan !== undefined && (await transferred(plan, stored)).isWhole;
      list.push({ id, bytes: await stored.bytes(), isWhole, total: plan?.weightBytes });
    }
    return list;
  },

  async download(emit, model) {
    if (transfer) throw new EngineError('Busy', 'another download is running');
    transfer = new AbortController();
    try {
      const stored = await StoredModel.at(model.id);
      const plan = await planOf(model, stored, transfer.signal);
      await download(model, stored, plan, transfer.signal, ({ done, total }) => {
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
    return enqueue(async () => {
      unloadNow();
      const files = model.files ? new LocalFiles(model.id, model.files) : await StoredModel.at(model.id);
      const plan = await readPlan(files);
      if (!plan) throw new EngineError('MissingFile', `this browser has no stored copy of ${model.id}`, 'download it first');
      const loadOnto = async ({ device, info }: OpenGpu) => {
        const about = JSON.stringify([info.vendor, info.architecture, info.description, info.features, navigator.userAgent]);
        const cache = await readAdapterCache();
        const deviceCache = cache?.about === about ? cache.files : {};
        const chat = await ChatEngine.load(device, files, JSON.stringify({ ...options, deviceCache }), (done: number, total: number) => {
          emit({ type: 'transfer', phase: 'load', done, total });
        });
        const updated = chat.deviceCache();
        if (updated !== JSON.stringify(deviceCache)) await writeAdapterCache({ about, files: JSON.parse(updated) });
        return chat;
      };
      let chat: ChatEngine;
      try {
        chat = await loadOnto(await openGpu());
      } catch (thrown) {
        const error = EngineError.from(thrown);
        closeGpu();
        // If the driver rejects a kernel with subgroups, try the kernels without.
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
    return enqueue(async () => {
      if (!engine) throw new EngineError('NotLoaded', 'no model is loaded');
      const onText = (text: string, tokens: Uint32Array, logprobs: string | null) => {
        emit({ type: 'text', text, tokens: tokens.length, logprobs: logprobs ? JSON.parse(logprobs) : [] });
        return !isStopped;
      };
      const { chat, files } = engine;
      const settings = JSON.stringify(sampling);
      let answer = typeof input === 'string'
        ? chat.complete(input, settings, onText) : chat.answer(JSON.stringify(input), settings, onText);
      let lost: EngineError | undefined;
      for (let losses = 0; ; losses++) {
        try {
          return JSON.parse(await answer);
        } catch (thrown) {
          const error = EngineError.from(thrown);
          const isLost = error.kind === 'DeviceLost';
          if (isLost && losses < MAX_DEVICE_LOSSES && !isStopped) {
            lost ??= error;
            closeGpu();
            emit({ type: 'lost', message: error.message });
            answer = openGpu().then(({ device }) => chat.resume(device, files, () => {}, onText));
            continue;
          }
          if (isLost || lost) {
            unloadNow();
            closeGpu();
          }
          // The first error is the cause of later ones.
          throw lost ?? error;
        }
      }
    });
  },

  async stop() {
    isStopped = true;
  },

  reset() {
    return enqueue(async () => engine?.chat.reset());
  },
};

/** The plan of a model. If it has none, no empty folder stays behind. */
async function planOf(model: ModelRef, stored: StoredModel, signal: AbortSignal): Promise<Plan> {
  try {
    return await fetchPlan(model, stored, signal);
  } catch (thrown) {
    await stored.removeIfEmpty();
    throw thrown;
  }
}

/** Runs `work` on the engine after the work before it. */
function enqueue<T>(work: () => Promise<T>): Promise<T> {
  const result = queue.then(work);
  queue = result.catch(() => undefined);
  return result;
}

function unload(): Promise<void> {
  isStopped = true;
  return enqueue(async () => unloadNow());
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
    throw new EngineError('NoWebGPU', 'this browser does not offer WebGPU to this page', self.isSecureContext
      ? 'use a current Chrome, Edge, Safari or Firefox; on Linux, Chrome may need WebGPU enabled in chrome://flags'
      : 'open the page by https or on localhost: browsers offer WebGPU to no other page');
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) {
    throw new EngineError('NoGpu', 'the browser found no usable GPU',
      'enable hardware acceleration in its settings, and update the graphics driver; chrome://gpu shows the reason');
  }
  // Kernels with subgroups need the feature and the language extension.
  const subgroups =
    wantsSubgroups && adapter.features.has('subgroups') && navigator.gpu.wgslLanguageFeatures.has('subgroup_id');
  const pipelines = new Pipelines();
  patchRequestDevice(subgroups, pipelines);
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

/** Adds what wgpu cannot request in a browser: subgroups, parallel compilation of pipelines, and faster reads in Firefox. */
function patchRequestDevice(subgroups: boolean, pipelines: Pipelines): void {
  if (!requestDevice) return;
  GPUAdapter.prototype.requestDevice = async function (descriptor?: GPUDeviceDescriptor) {
    const requiredFeatures = [...(descriptor?.requiredFeatures ?? []), ...(subgroups ? ['subgroups' as const] : [])];
    const device = await requestDevice.call(this, { ...descriptor, requiredFeatures });
    pipelines.attach(device);
    pollReads(device);
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
    reply({ id, error: EngineError.from(thrown).toPlain() });
  }
};

export type { ModelRef };
