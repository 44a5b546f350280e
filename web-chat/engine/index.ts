// The engine for JavaScript: `createEngine(model, { onProgress })`, then `engine.chat.completions.create(request)`.
// It runs in a worker of its own. The page beside this folder uses it as any other app would.

import { WorkerClient } from './client';
import { EngineError } from './errors';
import { localRef, modelRef, type ModelRef } from './model';
import { readRequest, usage, type ChatCompletion, type ChatCompletionChunk, type ChatCompletionRequest, type FinishReason } from './openai';
import type { AnswerReport, DeviceInfo, KeptInfo, LoadedInfo, LoadOptions, PlanInfo, TextEvent, TransferEvent, WorkerEvent } from './protocol';

export { EngineError, type ErrorKind } from './errors';
export { localRef, modelRef, type ModelRef } from './model';
export type { ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, CompletionUsage, FinishReason } from './openai';
export type { ChatMessage, DeviceInfo, KeptInfo, LoadedInfo, LoadOptions, PlanInfo } from './protocol';

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
}

/** A repository of the hub (`owner/name`), an address, the files of a folder, or what those were made into. */
export type ModelSource = string | File[] | ModelRef;

/** Downloads a model unless it is kept already, and loads it onto the GPU. */
export async function createEngine(model: ModelSource, options: EngineOptions = {}): Promise<Engine> {
  const engine = new Engine();
  try {
    await engine.reload(model, options);
  } catch (thrown) {
    await engine.unload();
    throw thrown;
  }
  return engine;
}

/** {@link createEngine} by WebLLM's name. */
export const CreateMLCEngine = createEngine;

/** An engine with one model. */
export class Engine {
  private readonly client = new WorkerClient();
  private source: { model: ModelRef; options: EngineOptions } | undefined;
  private isLoaded = false;
  private message = '';
  private lastReport: AnswerReport | undefined;

  readonly chat = {
    completions: {
      create: ((request: ChatCompletionRequest) => this.create(request)) as Create,
    },
  };

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
  async reload(model: ModelSource, options: EngineOptions = {}): Promise<LoadedInfo> {
    this.source = { model: refOf(model), options };
    this.isLoaded = false;
    return this.load();
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
    const { onProgress, initProgressCallback, context } = options;
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

  private create(request: ChatCompletionRequest): Promise<ChatCompletion | AsyncIterable<ChatCompletionChunk>> {
    return request.stream ? Promise.resolve().then(() => this.stream(request)) : this.answer(request);
  }

  private async answer(request: ChatCompletionRequest): Promise<ChatCompletion> {
    const start = performance.now();
    const head = this.head();
    const report = await this.run(request, () => undefined);
    return {
      ...head,
      object: 'chat.completion',
      choices: [{
        index: 0,
        message: { role: 'assistant', content: this.message },
        finish_reason: report.finishReason,
        logprobs: null,
      }],
      usage: usage(report, (performance.now() - start) / 1000),
    };
  }

  private async *stream(request: ChatCompletionRequest): AsyncGenerator<ChatCompletionChunk> {
    const start = performance.now();
    const head = { ...this.head(), object: 'chat.completion.chunk' as const };
    const chunk = (delta: { role?: 'assistant'; content?: string }, finish_reason: FinishReason | null): ChatCompletionChunk => ({
      ...head,
      choices: [{ index: 0, delta, finish_reason, logprobs: null }],
    });
    const texts: string[] = [];
    let wake = () => {};
    let report: AnswerReport | undefined;
    let failure: { thrown: unknown } | undefined;
    const running = this.run(request, ({ text }) => {
      if (text) texts.push(text);
      wake();
    }).then((done) => { report = done; }, (thrown: unknown) => { failure = { thrown }; }).finally(() => wake());
    try {
      yield chunk({ role: 'assistant', content: '' }, null);
      for (;;) {
        const text = texts.splice(0).join('');
        if (text) yield chunk({ content: text }, null);
        else if (failure) throw failure.thrown;
        else if (report) break;
        else await new Promise<void>((resolve) => { wake = resolve; });
      }
      yield chunk({}, report.finishReason);
      if (request.stream_options?.include_usage) {
        yield { ...head, choices: [], usage: usage(report, (performance.now() - start) / 1000) };
      }
    } finally {
      // Whoever breaks out of the loop wants no more.
      if (!report && !failure) await this.interruptGenerate();
      await running;
    }
  }

  private async run(request: ChatCompletionRequest, onText: (event: TextEvent) => void): Promise<AnswerReport> {
    const { messages, sampling } = readRequest(request);
    // After a lost device or a fault the model is loaded again.
    if (!this.isLoaded) await this.load();
    this.message = '';
    try {
      this.lastReport = await this.client.watch((event) => {
        if (event.type !== 'text') return;
        this.message += event.text;
        onText(event);
      }, 'answer', messages, sampling);
      return this.lastReport;
    } catch (thrown) {
      if (thrown instanceof EngineError && ['DeviceLost', 'Stopped', 'NotLoaded'].includes(thrown.kind)) this.isLoaded = false;
      throw thrown;
    }
  }

  private head() {
    return { id: `chatcmpl-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: this.source?.model.id ?? '' };
  }
}

interface Create {
  (request: ChatCompletionRequest & { stream: true }): Promise<AsyncIterable<ChatCompletionChunk>>;
  (request: ChatCompletionRequest & { stream?: false }): Promise<ChatCompletion>;
  (request: ChatCompletionRequest): Promise<ChatCompletion | AsyncIterable<ChatCompletionChunk>>;
}

function refOf(model: ModelSource): ModelRef {
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
