// What page and worker say to each other. A request has a number; its answer, and events on the way, carry it.

import type { PlainError } from './errors';
import type { ModelRef } from './model';

export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: string;
}

/** Sampling settings; what is not given is as the model's files recommend, else the engine's default (`LoadedInfo.sampling`). */
export interface Sampling {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  repetition_penalty?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  seed?: number;
  max_tokens?: number;
  stop?: string[];
  logit_bias?: Record<string, number>;
  /** How many of the likeliest tokens are told in a token's place, beside the token itself. */
  logprobs?: number;
}

/** How likely a token was, in the form of OpenAI's interface. */
export interface TokenLogprob {
  token: string;
  /** Of its text; `null` where it is a part of a character. */
  bytes: number[] | null;
  logprob: number;
  top_logprobs: { token: string; bytes: number[] | null; logprob: number }[];
}

/** Why an answer ended, and what it took: `src/engine.rs`. */
export interface AnswerReport {
  finishReason: 'stop' | 'length' | 'abort';
  promptTokens: number;
  cachedTokens: number;
  generatedTokens: number;
  timeToFirstToken: number;
  prefillSeconds: number;
  decodeSeconds: number;
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
}

/** The browser's adapter, and what the engine uses of it. */
export interface DeviceInfo {
  vendor: string;
  architecture: string;
  description: string;
  features: string[];
  limits: Record<string, number>;
  isSoftware: boolean;
  f16: boolean;
  subgroups: [number, number] | null;
  timestamps: boolean;
  maxBinding: number;
  maxBuffer: number;
}

/** A loaded model. */
export interface LoadedInfo {
  id: string;
  modelType: string;
  context: number;
  weightBytes: number;
  cacheBytes: number;
  scratchBytes: number;
  /** Cases of kernels that were checked when it was loaded; 0 where it was known before how they come out. */
  checkedCases: number;
  checkedSeconds: number;
  /** Bytes of weights that decoding a token reads. */
  bytesPerToken: number;
  cacheBytesPerToken: number;
  /** The settings of a request that gives none: the model's recommendation, else the engine's default. */
  sampling: Required<Omit<Sampling, 'seed' | 'stop' | 'logit_bias' | 'logprobs'>>;
  /** Most bytes of the wasm's own memory so far. */
  heapBytes: number;
}

/** What a model's two small files say of it: `src/plan.rs`. */
export interface Plan {
  shards: Shard[];
  textFiles: string[];
  weightBytes: number;
  cacheBytesPerToken: number;
  bytesPerToken: number;
  context: number;
  modelType: string;
  quantization: string;
}

export interface Shard {
  name: string;
  bytes: number;
  md5: string | null;
}

/** A model of which something is kept. */
export interface KeptInfo {
  id: string;
  bytes: number;
  isWhole: boolean;
  total: number | undefined;
}

export interface PlanInfo extends Plan {
  done: number;
  isWhole: boolean;
}

export interface LoadOptions {
  context?: number;
}

/** The worker's methods. */
export interface Methods {
  device(): DeviceInfo;
  bandwidth(): number;
  plan(model: ModelRef): PlanInfo;
  kept(): KeptInfo[];
  download(model: ModelRef): void;
  pause(): void;
  remove(id: string): void;
  load(model: ModelRef, options: LoadOptions): LoadedInfo;
  loaded(): LoadedInfo | undefined;
  unload(): void;
  /** A conversation's answer, or a plain text's continuation. */
  answer(input: ChatMessage[] | string, sampling: Sampling): AnswerReport;
  stop(): void;
  reset(): void;
}

export interface TransferEvent {
  type: 'transfer';
  phase: 'download' | 'load';
  done: number;
  total: number;
}

export interface TextEvent {
  type: 'text';
  text: string;
  tokens: number;
  logprobs: TokenLogprob[];
}

/** The GPU was lost; the model is loaded again, and the answer goes on. */
export interface LostEvent {
  type: 'lost';
  message: string;
}

export type WorkerEvent = TransferEvent | TextEvent | LostEvent;

export interface Request {
  id: number;
  method: keyof Methods;
  args: unknown[];
}

export type Reply =
  | { id: number; event: WorkerEvent }
  | { id: number; result: unknown }
  | { id: number; error: PlainError };
