// Messages between page and worker. A request has an id; its reply and its events carry the same id.

import type { PlainError } from './errors';
import type { ModelRef } from './model';

export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: string;
}

/** Sampling settings. A missing one is the model's recommendation, else the engine's default (`LoadedInfo.sampling`). */
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
  /** Report log probabilities: of each token and of this many most likely tokens at its position. */
  logprobs?: number;
}

/** Log probability of a token, in the form of OpenAI's interface. */
export interface TokenLogprob {
  token: string;
  /** UTF-8 bytes of the text; `null` if the token is a part of a character. */
  bytes: number[] | null;
  logprob: number;
  top_logprobs: { token: string; bytes: number[] | null; logprob: number }[];
}

/** Reason for an answer's end, token counts and times in seconds: `src/engine.rs`. */
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

/** The browser's adapter, and the features and limits that the engine uses. */
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

/** A loaded model and its memory. */
export interface LoadedInfo {
  id: string;
  modelType: string;
  context: number;
  weightBytes: number;
  cacheBytes: number;
  scratchBytes: number;
  /** Cases of the kernels' self-test that ran while loading; 0 if their results were stored earlier. */
  checkedCases: number;
  checkedSeconds: number;
  /** Bytes of weights that decode reads per token. */
  bytesPerToken: number;
  cacheBytesPerToken: number;
  /** Default settings of a request: the model's recommendation, else the engine's default. */
  sampling: Required<Omit<Sampling, 'seed' | 'stop' | 'logit_bias' | 'logprobs'>>;
  /** Size of the wasm's memory, which never shrinks. */
  heapBytes: number;
}

/** A model's files and memory, from its configuration and its index: `src/plan.rs`. */
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

/** A stored model, complete or not. */
export interface KeptInfo {
  id: string;
  /** Stored bytes. */
  bytes: number;
  /** True if the model is complete. */
  isWhole: boolean;
  /** Bytes of the weights, if the index is stored. */
  total: number | undefined;
}

export interface PlanInfo extends Plan {
  /** Stored bytes of the shards. */
  done: number;
  /** True if the model is complete. */
  isWhole: boolean;
}

export interface LoadOptions {
  /** Capacity in tokens. */
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
  /** Answers a conversation or continues a plain text. */
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

/** The GPU was lost. The model is loaded again, and the answer continues. */
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
