// The engine for JavaScript: `createEngine(model, { onProgress })`, then `engine.chat.completions.create(request)`.
// It runs in its own worker. `page/` uses it as any other app would.

import { WorkerClient } from './client';
import { EngineError } from './errors';
import { localRef, modelRef, recordRef, type AppConfig, type ModelRecord, type ModelRef } from './model';
import {
  chatFormat, readMessages, readSampling, textFormat, usage,
  type ChatCompletion, type ChatCompletionChunk, type ChatCompletionRequest, type Completion, type CompletionRequest,
  type GenerationSettings, type ResponseFormat,
} from './openai';
import type {
  AnswerReport, ChatMessage, DeviceInfo, KeptInfo, LoadedInfo, LoadOptions, PlanInfo, Sampling, TextEvent, TokenLogprob, TransferEvent,
  WorkerEvent,
} from './protocol';

export { EngineError, type ErrorKind } from './errors';
export { MODELS, memoryNeeded, prebuiltAppConfig, type CatalogEntry } from './catalog';
export { localRef, modelRef, type AppConfig, type ModelRecord, type ModelRef } from './model';
export type {
  ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, Completion, CompletionRequest, CompletionUsage, FinishReason,
  GenerationSettings, Logprobs, RequestMessage,
} from './openai';
export type { ChatMessage, TokenLogprob, DeviceInfo, KeptInfo, LoadedInfo, LoadOptions, PlanInfo } from './protocol';

/** Progress of a download or of loading. */
export interface ProgressReport {
  /** `download`: from the network to the browser's storage. `load`: from the storage to the GPU. */
  phase: 'download' | 'load';
  /** Done part of this phase, 0 to 1. */
  progress: number;
  bytes: number;
  totalBytes: number;
  /** Average of the last seconds. */
  bytesPerSecond: number;
  /** Seconds since the call. */
  timeElapsed: number;
  /** The same as a sentence. */
  text: string;
}

export interface EngineOptions extends LoadOptions {
  onProgress?: (report: ProgressReport) => void;
  /** WebLLM's name for `onProgress`. */
  initProgressCallback?: (report: ProgressReport) => void;
  /** Called if the GPU is lost during an answer. The model is loaded again, and the answer continues. */
  onDeviceLost?: (message: string) => void;
  /** An app's list of models, as in WebLLM. A `model_id` in it names its address. */
  appConfig?: AppConfig;
}

/** WebLLM's options for loading: the context, and default settings for requests. */
export interface ChatOptions extends GenerationSettings {
  /** Capacity in tokens. */
  context_window_size?: number;
}

/** A repository of the hub (`owner/name`), an address, the files of a folder, or a `ModelRef` of these. */
export type ModelSource = string | File[] | ModelRef;

/** Downloads a model unless it is stored, and loads it onto the GPU. */
export async function createEngine(model: ModelSource, options: EngineOptions = {}, chatOptions: ChatOptions = {}): Promise<Engine> {
  const engine = new Engine(options);
  try {
    await engine.reload(model, chatOptions);
  } catch (thrown) {
    await engine.unload();
    throw thrown;
  }
  return engine;
}

/** WebLLM's name for {@link createEngine}. */
export const CreateMLCEngine = createEngine;

/** For apps that start a worker for WebLLM's engine. This engine has its own worker and terminates the app's. */
export async function CreateWebWorkerMLCEngine(
  worker: Worker, model: ModelSource, options: EngineOptions = {}, chatOptions: ChatOptions = {},
): Promise<Engine> {
  worker.terminate();
  return createEngine(model, options, chatOptions);
}

/** True if a complete model is stored in this browser. */
export async function hasModelInCache(model: ModelSource, appConfig?: AppConfig): Promise<boolean> {
  const { id } = refOf(model, appConfig);
  return withEngine(async ({ models }) => (await models.kept()).some((kept) => kept.id === id && kept.isWhole));
}

/** Deletes the stored files of a model. */
export async function deleteModelAllInfoInCache(model: ModelSource, appConfig?: AppConfig): Promise<void> {
  await withEngine(({ models }) => models.remove(refOf(model, appConfig)));
}

/** The same as {@link deleteModelAllInfoInCache}: nothing else is stored for a model. */
export const deleteModelInCache = deleteModelAllInfoInCache;

/** Runs `work` with a temporary engine. */
async function withEngine<T>(work: (engine: Engine) => Promise<T>): Promise<T> {
  const engine = new Engine();
  try {
    return await work(engine);
  } finally {
    await engine.unload();
  }
}

/** An engine with one model. */
export class Engine {
  private readonly client = new WorkerClient();
  private source: { model: ModelRef; options: EngineOptions & ChatOptions } | undefined;
  private isLoaded = false;
  private message = '';
  private lastReport: AnswerReport | undefined;

  /** An engine without a model; `reload` loads one. */
  constructor(private options: EngineOptions = {}) {}

  readonly chat = {
    completions: {
      create: ((request: ChatCompletionRequest) => this.create(request)) as Create<ChatCompletionRequest, ChatCompletion, ChatCompletionChunk>,
    },
  };

  readonly completions = {
    create: ((request: CompletionRequest) => this.create(request)) as Create<CompletionRequest, Completion, Completion>,
  };

  /** WebLLM's short names for `chat.completions.create` and `completions.create`. */
  readonly chatCompletion = this.chat.completions.create;
  readonly completion = this.completions.create;

  /** Models stored in this browser. */
  readonly models = {
    /** Lists the stored models, complete or not. */
    kept: (): Promise<KeptInfo[]> => this.client.call('kept'),
    /** A model's size and required memory, from its two small files. */
    plan: (model: ModelSource): Promise<PlanInfo> => this.client.call('plan', refOf(model)),
    download: (model: ModelSource, onProgress?: (report: ProgressReport) => void): Promise<void> =>
      this.client.watch(meter(onProgress), 'download', refOf(model)),
    /** Stops the download. The downloaded part stays stored. */
    pause: (): Promise<void> => this.client.call('pause'),
    remove: (model: ModelSource): Promise<void> => this.client.call('remove', refOf(model).id),
  };

  /** Replaces the loaded model. Downloads the new one unless it is stored. */
  async reload(model: ModelSource, options: EngineOptions & ChatOptions = {}): Promise<LoadedInfo> {
    const { appConfig } = { ...this.options, ...options };
    const overrides = recordOf(model, appConfig)?.overrides as ChatOptions | undefined;
    this.source = { model: refOf(model, appConfig), options: { ...this.options, ...overrides, ...options } };
    this.isLoaded = false;
    return this.load();
  }

  setInitProgressCallback(callback: ((report: ProgressReport) => void) | undefined): void {
    const { initProgressCallback: _, ...others } = this.options;
    this.options = callback ? { ...others, initProgressCallback: callback } : others;
  }

  getInitProgressCallback(): ((report: ProgressReport) => void) | undefined {
    return this.options.initProgressCallback;
  }

  /** Frees the GPU's memory and terminates the worker. */
  async unload(): Promise<void> {
    this.isLoaded = false;
    this.source = undefined;
    this.client.end();
  }

  /** Stops the current answer. */
  interruptGenerate(): Promise<void> {
    return this.client.call('stop');
  }

  /** Clears the KV cache. */
  async resetChat(keepStats = false): Promise<void> {
    if (!keepStats) this.lastReport = undefined;
    this.message = '';
    await this.client.call('reset');
  }

  /** The text of the current answer, or of the last one. */
  async getMessage(): Promise<string> {
    return this.message;
  }

  async runtimeStatsText(): Promise<string> {
    const { prefillTokensPerSecond = 0, decodeTokensPerSecond = 0 } = this.lastReport ?? {};
    return `prefill: ${prefillTokensPerSecond.toFixed(4)} tokens/sec, decoding: ${decodeTokensPerSecond.toFixed(4)} tokens/sec`;
  }

  /** The loaded model and the device memory that it uses. */
  loaded(): Promise<LoadedInfo | undefined> {
    return this.client.call('loaded');
  }

  device(): Promise<DeviceInfo> {
    return this.client.call('device');
  }

  async getGPUVendor(): Promise<string> {
    return (await this.device()).vendor;
  }

  async getMaxStorageBufferBindingSize(): Promise<number> {
    return (await this.device()).limits['maxStorageBufferBindingSize'] ?? 0;
  }

  /** Measures the bandwidth of the GPU's memory, in bytes per second, reads plus writes. Takes a moment. */
  measureBandwidth(): Promise<number> {
    return this.client.call('bandwidth');
  }

  private async load(): Promise<LoadedInfo> {
    if (!this.source) throw new EngineError('NotLoaded', 'no model is loaded', 'call `reload` with a model first');
    const { model, options } = this.source;
    const { onProgress, initProgressCallback, context_window_size, context = context_window_size } = options;
    const onEvent = meter((report) => {
      onProgress?.(report);
      initProgressCallback?.(report);
    });
    if (!model.files && !(await this.client.call('plan', model)).isWhole) {
      await this.client.watch(onEvent, 'download', model);
    }
    const loaded = await this.client.watch(onEvent, 'load', model, context === undefined ? {} : { context });
    this.isLoaded = true;
    return loaded;
  }

  private create(request: ChatCompletionRequest | CompletionRequest): Promise<unknown> {
    const head = { id: `chatcmpl-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: this.source?.model.id ?? '' };
    const answer = <Whole, Piece>(format: ResponseFormat<Whole, Piece>, input: () => ChatMessage[] | string) => {
      const read = () => ({ input: input(), sampling: readSampling(request, this.source?.options ?? {}) });
      const includesUsage = request.stream_options?.include_usage ?? false;
      return request.stream ? Promise.resolve().then(() => this.stream(format, read, includesUsage)) : this.answer(format, read);
    };
    if (!('prompt' in request)) return answer(chatFormat(head), () => readMessages(request));
    const { prompt, echo } = request;
    return answer(textFormat({ ...head, id: head.id.replace('chat', '') }, echo ? prompt : undefined), () => {
      if (typeof prompt !== 'string') throw new EngineError('BadParameter', '`prompt` must be a string');
      return prompt;
    });
  }

  private async answer<Whole>(format: ResponseFormat<Whole, unknown>, read: () => Question): Promise<Whole> {
    const start = performance.now();
    const logprobs: TokenLogprob[] = [];
    const question = read();
    const report = await this.run(question, (event) => logprobs.push(...event.logprobs));
    const content = question.sampling.logprobs === undefined ? null : { content: logprobs };
    return format.whole({ text: this.message, reason: report.finishReason, logprobs: content }, usage(report, (performance.now() - start) / 1000));
  }

  private async *stream<Piece>(format: ResponseFormat<unknown, Piece>, read: () => Question, includesUsage: boolean): AsyncGenerator<Piece> {
    const start = performance.now();
    let text = '';
    let logprobs: TokenLogprob[] = [];
    let wake = () => {};
    let report: AnswerReport | undefined;
    let failure: { thrown: unknown } | undefined;
    const question = read();
    const running = this.run(question, (event) => {
      text += event.text;
      logprobs.push(...event.logprobs);
      wake();
    }).then((done) => { report = done; }, (thrown: unknown) => { failure = { thrown }; }).finally(() => wake());
    try {
      if (format.first) yield format.first;
      for (;;) {
        if (text) {
          const piece = format.piece(text, null, question.sampling.logprobs === undefined ? null : { content: logprobs });
          [text, logprobs] = ['', []];
          yield piece;
        } else if (failure) throw failure.thrown;
        else if (report) break;
        else await new Promise<void>((resolve) => { wake = resolve; });
      }
      // Remaining tokens without text, for example the stop token.
      yield format.piece('', report.finishReason, logprobs.length > 0 ? { content: logprobs } : null);
      if (includesUsage) yield format.usage(usage(report, (performance.now() - start) / 1000));
    } finally {
      // The caller left its loop early: stop the answer.
      if (!report && !failure) await this.interruptGenerate();
      await running;
    }
  }

  private async run({ input, sampling }: Question, onText: (event: TextEvent) => void): Promise<AnswerReport> {
    // Load the model again after a lost device or a crash.
    if (!this.isLoaded) await this.load();
    this.message = '';
    try {
      this.lastReport = await this.client.watch((event) => {
        if (event.type === 'lost') this.source?.options.onDeviceLost?.(event.message);
        if (event.type !== 'text') return;
        this.message += event.text;
        onText(event);
      }, 'answer', input, sampling);
      return this.lastReport;
    } catch (thrown) {
      if (thrown instanceof EngineError && ['DeviceLost', 'Stopped', 'NotLoaded'].includes(thrown.kind)) this.isLoaded = false;
      throw thrown;
    }
  }
}

/** WebLLM's name for {@link Engine}. */
export { Engine as MLCEngine };

interface Question {
  input: ChatMessage[] | string;
  sampling: Sampling;
}

interface Create<Request, Whole, Piece> {
  (request: Request & { stream: true }): Promise<AsyncIterable<Piece>>;
  (request: Request & { stream?: false | null }): Promise<Whole>;
  (request: Request): Promise<Whole | AsyncIterable<Piece>>;
}

function recordOf(model: ModelSource, appConfig: AppConfig | undefined): ModelRecord | undefined {
  return appConfig?.model_list.find((record) => record.model_id === model);
}

function refOf(model: ModelSource, appConfig?: AppConfig): ModelRef {
  const record = recordOf(model, appConfig);
  if (record) return recordRef(record);
  if (typeof model === 'string') return modelRef(model);
  return Array.isArray(model) ? localRef(model) : model;
}

/** The speed is an average of this many milliseconds. */
const WINDOW_MS = 4000;

/** Converts transfer events to progress reports. */
function meter(onProgress: ((report: ProgressReport) => void) | undefined): (event: WorkerEvent) => void {
  const begin = performance.now();
  let phase = '';
  let marks: { at: number; bytes: number }[] = [];
  return (event) => {
    if (event.type !== 'transfer') return;
    const now = performance.now();
    if (event.phase !== phase) marks = [];
    phase = event.phase;
    marks.push({ at: now, bytes: event.done });
    while (marks.length > 2 && now - marks[0]!.at > WINDOW_MS) marks.shift();
    const first = marks[0]!;
    const bytesPerSecond = now > first.at ? ((event.done - first.bytes) / (now - first.at)) * 1000 : 0;
    onProgress?.(report(event, bytesPerSecond, (now - begin) / 1000));
  };
}

function report({ phase, done, total }: TransferEvent, bytesPerSecond: number, timeElapsed: number): ProgressReport {
  const progress = total > 0 ? done / total : 1;
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(0);
  const verb = phase === 'download' ? 'Downloading' : 'Loading';
  const text = `${verb}: ${megabytes(done)} of ${megabytes(total)} MB, ${(100 * progress).toFixed(0)} %, ${timeElapsed.toFixed(0)} s`;
  return { phase, progress, bytes: done, totalBytes: total, bytesPerSecond, timeElapsed, text };
}
