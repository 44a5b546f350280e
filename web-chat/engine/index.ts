// The engine for JavaScript: `createEngine(model, { onProgress })`, then `engine.chat.completions.create(request)`.
// It runs in a worker of its own. The page beside this folder uses it as any other app would.

import { WorkerClient } from './client';
import { EngineError } from './errors';
import { localRef, modelRef, recordRef, type AppConfig, type ModelRecord, type ModelRef } from './model';
import {
  chatForm, readMessages, readSampling, textForm, usage,
  type ChatCompletion, type ChatCompletionChunk, type ChatCompletionRequest, type Completion, type CompletionRequest, type Form,
  type GenerationSettings,
} from './openai';
import type {
  AnswerReport, ChatMessage, DeviceInfo, KeptInfo, LoadedInfo, LoadOptions, PlanInfo, Sampling, TextEvent, TokenLogprob, TransferEvent,
  WorkerEvent,
} from './protocol';

export { EngineError, type ErrorKind } from './errors';
export { MODELS, memoryNeeded, prebuiltAppConfig, type Listed } from './catalogue';
export { localRef, modelRef, type AppConfig, type ModelRecord, type ModelRef } from './model';
export type {
  ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, Completion, CompletionRequest, CompletionUsage, FinishReason,
  GenerationSettings, Logprobs, RequestMessage,
} from './openai';
export type { ChatMessage, TokenLogprob, DeviceInfo, KeptInfo, LoadedInfo, LoadOptions, PlanInfo } from './protocol';

/** How far a model is on its way. */
export interface ProgressReport {
  /** `download`: to the browser's storage. `load`: from there to the GPU. */
  phase: 'download' | 'load';
  /** From 0 to 1, of this phase. */
  progress: number;
  bytes: number;
  totalBytes: number;
  /** Over the last seconds. */
  bytesPerSecond: number;
  /** Seconds since the beginning. */
  timeElapsed: number;
  /** The same in words. */
  text: string;
}

export interface EngineOptions extends LoadOptions {
  onProgress?: (report: ProgressReport) => void;
  /** The name that WebLLM's users know. */
  initProgressCallback?: (report: ProgressReport) => void;
  /** The GPU was lost in an answer, which goes on when the model is loaded again. */
  onDeviceLost?: (message: string) => void;
  /** An app's own list of models, as WebLLM's users have it: their names stand for its addresses. */
  appConfig?: AppConfig;
}

/** What WebLLM's users load a model with: room for so many tokens, and settings for requests that have none of their own. */
export interface ChatOptions extends GenerationSettings {
  context_window_size?: number;
}

/** A repository of the hub (`owner/name`), an address, the files of a folder, or what those were made into. */
export type ModelSource = string | File[] | ModelRef;

/** Downloads a model unless it is kept already, and loads it onto the GPU. */
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

/** {@link createEngine} by WebLLM's name. */
export const CreateMLCEngine = createEngine;

/** The same for an app that has a worker for WebLLM's engine. This one has its own, and the app's is ended. */
export async function CreateWebWorkerMLCEngine(
  worker: Worker, model: ModelSource, options: EngineOptions = {}, chatOptions: ChatOptions = {},
): Promise<Engine> {
  worker.terminate();
  return createEngine(model, options, chatOptions);
}

/** Whether all of a model is kept in this browser. */
export async function hasModelInCache(model: ModelSource, appConfig?: AppConfig): Promise<boolean> {
  const { id } = refOf(model, appConfig);
  return withEngine(async ({ models }) => (await models.kept()).some((kept) => kept.id === id && kept.isWhole));
}

/** Removes what is kept of a model. */
export async function deleteModelAllInfoInCache(model: ModelSource, appConfig?: AppConfig): Promise<void> {
  await withEngine(({ models }) => models.remove(refOf(model, appConfig)));
}

/** {@link deleteModelAllInfoInCache}: there is nothing that is kept apart from the model. */
export const deleteModelInCache = deleteModelAllInfoInCache;

/** Works with an engine that is there for that alone. */
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

  /** An engine that has no model yet: `reload` gives it one. */
  constructor(private options: EngineOptions = {}) {}

  readonly chat = {
    completions: {
      create: ((request: ChatCompletionRequest) => this.create(request)) as Create<ChatCompletionRequest, ChatCompletion, ChatCompletionChunk>,
    },
  };

  readonly completions = {
    create: ((request: CompletionRequest) => this.create(request)) as Create<CompletionRequest, Completion, Completion>,
  };

  /** `chat.completions.create` and `completions.create` by other names. */
  readonly chatCompletion = this.chat.completions.create;
  readonly completion = this.completions.create;

  /** What is kept in this browser, and the device. */
  readonly models = {
    kept: (): Promise<KeptInfo[]> => this.client.call('kept'),
    plan: (model: ModelSource): Promise<PlanInfo> => this.client.call('plan', refOf(model)),
    download: (model: ModelSource, onProgress?: (report: ProgressReport) => void): Promise<void> =>
      this.client.watch(meter(onProgress), 'download', refOf(model)),
    /** Stops a download; what has arrived is kept. */
    pause: (): Promise<void> => this.client.call('pause'),
    remove: (model: ModelSource): Promise<void> => this.client.call('remove', refOf(model).id),
  };

  /** Loads a model in place of the one that is there; downloads it first unless it is kept already. */
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

  /** Frees the GPU's memory and ends the worker. */
  async unload(): Promise<void> {
    this.isLoaded = false;
    this.source = undefined;
    this.client.end();
  }

  /** Ends the answer that is being made. */
  interruptGenerate(): Promise<void> {
    return this.client.call('stop');
  }

  /** Forgets what the GPU remembers of the conversation. */
  async resetChat(keepStats = false): Promise<void> {
    if (!keepStats) this.lastReport = undefined;
    this.message = '';
    await this.client.call('reset');
  }

  /** The answer so far, or the last one. */
  async getMessage(): Promise<string> {
    return this.message;
  }

  async runtimeStatsText(): Promise<string> {
    const { prefillTokensPerSecond = 0, decodeTokensPerSecond = 0 } = this.lastReport ?? {};
    return `prefill: ${prefillTokensPerSecond.toFixed(4)} tokens/sec, decoding: ${decodeTokensPerSecond.toFixed(4)} tokens/sec`;
  }

  /** The model that is loaded and what it holds of the device's memory. */
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

  /** Measures the bandwidth of the GPU's memory, in bytes per second. Keeps it busy for a moment. */
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
    const answer = <Whole, Piece>(form: Form<Whole, Piece>, input: () => ChatMessage[] | string) => {
      const read = () => ({ input: input(), sampling: readSampling(request, this.source?.options ?? {}) });
      const includesUsage = request.stream_options?.include_usage ?? false;
      return request.stream ? Promise.resolve().then(() => this.stream(form, read, includesUsage)) : this.answer(form, read);
    };
    if (!('prompt' in request)) return answer(chatForm(head), () => readMessages(request));
    const { prompt, echo } = request;
    return answer(textForm({ ...head, id: head.id.replace('chat', '') }, echo ? prompt : undefined), () => {
      if (typeof prompt !== 'string') throw new EngineError('BadParameter', '`prompt` must be a text');
      return prompt;
    });
  }

  private async answer<Whole>(form: Form<Whole, unknown>, read: () => Question): Promise<Whole> {
    const start = performance.now();
    const logprobs: TokenLogprob[] = [];
    const question = read();
    const report = await this.run(question, (event) => logprobs.push(...event.logprobs));
    const content = question.sampling.logprobs === undefined ? null : { content: logprobs };
    return form.whole({ text: this.message, reason: report.finishReason, logprobs: content }, usage(report, (performance.now() - start) / 1000));
  }

  private async *stream<Piece>(form: Form<unknown, Piece>, read: () => Question, includesUsage: boolean): AsyncGenerator<Piece> {
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
      if (form.first) yield form.first;
      for (;;) {
        if (text) {
          const piece = form.piece(text, null, question.sampling.logprobs === undefined ? null : { content: logprobs });
          [text, logprobs] = ['', []];
          yield piece;
        } else if (failure) throw failure.thrown;
        else if (report) break;
        else await new Promise<void>((resolve) => { wake = resolve; });
      }
      // Tokens without text of their own, such as the one that ended the answer.
      yield form.piece('', report.finishReason, logprobs.length > 0 ? { content: logprobs } : null);
      if (includesUsage) yield form.usage(usage(report, (performance.now() - start) / 1000));
    } finally {
      // Whoever breaks out of the loop wants no more.
      if (!report && !failure) await this.interruptGenerate();
      await running;
    }
  }

  private async run({ input, sampling }: Question, onText: (event: TextEvent) => void): Promise<AnswerReport> {
    // After a lost device or a fault the model is loaded again.
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

/** {@link Engine} by WebLLM's name. */
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

/** Speed over the last seconds, from bytes that are done. */
const WINDOW_MS = 4000;

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
