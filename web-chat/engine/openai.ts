// Requests and responses in the form of OpenAI's and WebLLM's interfaces.

import { EngineError } from './errors';
import type { AnswerReport, ChatMessage, Sampling, TokenLogprob } from './protocol';

/** Settings of a request, or defaults that a model is loaded with. */
export interface GenerationSettings {
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  max_tokens?: number | null;
  stop?: string | string[] | null;
  seed?: number | null;
  /** Values from -100 to 100, by token id. */
  logit_bias?: Record<string, number> | null;
}

interface RequestBase extends GenerationSettings {
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  /** True to report the log probability of each token in the model's own distribution, before temperature and penalties. */
  logprobs?: boolean | null;
  /** Number of most likely tokens to report at each position, up to 20. */
  top_logprobs?: number | null;
  /** Accepted for compatibility and ignored: an engine has one model. */
  model?: string | null;
  n?: number | null;
}

/** A message. Its content may be a list of text parts. */
export interface RequestMessage {
  role: ChatMessage['role'];
  content: string | { type: 'text'; text: string }[];
}

export interface ChatCompletionRequest extends RequestBase {
  messages: RequestMessage[];
}

/** A plain text to continue, without the model's chat template. */
export interface CompletionRequest extends RequestBase {
  prompt: string;
  /** True to repeat the prompt at the beginning of the text. */
  echo?: boolean | null;
}

export interface CompletionUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  extra: {
    e2e_latency_s: number;
    prefill_tokens_per_s: number;
    decode_tokens_per_s: number;
    time_to_first_token_s: number;
    time_per_output_token_s: number;
    /** Tokens of the prompt that were in the KV cache. */
    cached_prompt_tokens: number;
  };
}

export type FinishReason = 'stop' | 'length' | 'abort';

/** `null` if not requested. */
export type Logprobs = { content: TokenLogprob[] } | null;

export interface ChatCompletion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  choices: [{
    index: 0;
    message: { role: 'assistant'; content: string };
    finish_reason: FinishReason;
    logprobs: Logprobs;
  }];
  usage: CompletionUsage;
}

export interface ChatCompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  choices: [] | [{
    index: 0;
    delta: { role?: 'assistant'; content?: string };
    finish_reason: FinishReason | null;
    logprobs: Logprobs;
  }];
  usage?: CompletionUsage;
}

/** A response to a completion request, whole or as a part of a stream. */
export interface Completion {
  id: string;
  object: 'text_completion';
  created: number;
  model: string;
  choices: [] | [{ index: 0; text: string; finish_reason: FinishReason | null; logprobs: Logprobs }];
  usage?: CompletionUsage;
}

const NUMBERS = [
  'temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed', 'repetition_penalty', 'presence_penalty', 'frequency_penalty',
] as const;
const COUNTS = ['top_k', 'max_tokens', 'seed'];
const KNOWN = new Set<string>([
  ...NUMBERS, 'messages', 'prompt', 'echo', 'stream', 'stream_options', 'stop', 'logit_bias', 'logprobs', 'top_logprobs', 'model', 'n',
  'user',
]);
const MAX_TOP_LOGPROBS = 20;
const ROLES = ['system', 'user', 'assistant', 'tool'];

/** The conversation of a request. */
export function readMessages({ messages }: ChatCompletionRequest): ChatMessage[] {
  if (!Array.isArray(messages) || messages.length === 0) throw bad('`messages` must be a list of at least one message');
  const read = messages.map(({ role, content }, i) => {
    if (!ROLES.includes(role)) throw bad(`\`messages[${i}].role\` must be one of ${ROLES.join(', ')}`);
    if (role === 'system' && i > 0) throw bad('only the first message may have the role `system`');
    const parts = Array.isArray(content) ? content.map((part) => (part?.type === 'text' ? part.text : undefined)) : [content];
    if (parts.some((part) => typeof part !== 'string')) throw bad(`\`messages[${i}].content\` must be a string, or a list of parts of type \`text\``);
    return { role, content: parts.join('') };
  });
  const last = read.at(-1)!.role;
  if (last !== 'user' && last !== 'tool') throw bad('the last message must have the role `user` or `tool`');
  return read;
}

/** The settings of a request, else the defaults. An unsupported setting is an error, not ignored. */
export function readSampling(request: RequestBase, defaults: GenerationSettings): Sampling {
  for (const [name, value] of Object.entries(request)) {
    if (value !== null && value !== undefined && !KNOWN.has(name)) throw bad(`\`${name}\` is not supported`);
  }
  if ((request.n ?? 1) !== 1) throw bad('`n` must be 1');
  const sampling: Record<string, unknown> = {};
  for (const name of NUMBERS) {
    const value = request[name] ?? defaults[name];
    if (value === null || value === undefined) continue;
    if (typeof value !== 'number' || !Number.isFinite(value)) throw bad(`\`${name}\` must be a number`);
    if (COUNTS.includes(name) && (!Number.isSafeInteger(value) || value < 0)) throw bad(`\`${name}\` must be an integer of 0 or more`);
    sampling[name] = value;
  }
  const stop = request.stop ?? defaults.stop;
  if (stop) sampling['stop'] = [stop].flat();
  const bias = request.logit_bias ?? defaults.logit_bias;
  for (const [id, value] of Object.entries(bias ?? {})) {
    if (!/^\d+$/.test(id) || typeof value !== 'number' || !(Math.abs(value) <= 100)) {
      throw bad('`logit_bias` must map token ids to numbers from -100 to 100');
    }
  }
  if (bias) sampling['logit_bias'] = bias;
  const top = request.top_logprobs ?? 0;
  if (!Number.isSafeInteger(top) || top < 0 || top > MAX_TOP_LOGPROBS) throw bad(`\`top_logprobs\` must be an integer from 0 to ${MAX_TOP_LOGPROBS}`);
  if (request.logprobs) sampling['logprobs'] = top;
  else if (top > 0) throw bad('`top_logprobs` requires `logprobs: true`');
  return sampling as Sampling;
}

/** Response objects of one of the two interfaces, whole and in pieces. */
export interface ResponseFormat<Whole, Piece> {
  whole(answer: Answer, usage: CompletionUsage): Whole;
  /** Sent before the first piece of text. */
  first?: Piece | undefined;
  piece(text: string, reason: FinishReason | null, logprobs: Logprobs): Piece;
  /** Sent last, if requested. */
  usage(usage: CompletionUsage): Piece;
}

interface Answer {
  text: string;
  reason: FinishReason;
  logprobs: Logprobs;
}

interface Head {
  id: string;
  created: number;
  model: string;
}

export function chatFormat(head: Head): ResponseFormat<ChatCompletion, ChatCompletionChunk> {
  const chunk = (choices: ChatCompletionChunk['choices']): ChatCompletionChunk => ({ ...head, object: 'chat.completion.chunk', choices });
  return {
    whole: ({ text, reason, logprobs }, usage) => ({
      ...head,
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content: text }, finish_reason: reason, logprobs }],
      usage,
    }),
    first: chunk([{ index: 0, delta: { role: 'assistant', content: '' }, finish_reason: null, logprobs: null }]),
    piece: (content, finish_reason, logprobs) => chunk([{ index: 0, delta: content ? { content } : {}, finish_reason, logprobs }]),
    usage: (usage) => ({ ...chunk([]), usage }),
  };
}

export function textFormat(head: Head, prompt: string | undefined): ResponseFormat<Completion, Completion> {
  const piece = (text: string, finish_reason: FinishReason | null, logprobs: Logprobs): Completion => ({
    ...head, object: 'text_completion', choices: [{ index: 0, text, finish_reason, logprobs }],
  });
  return {
    whole: ({ text, reason, logprobs }, usage) => ({ ...piece((prompt ?? '') + text, reason, logprobs), usage }),
    first: prompt === undefined ? undefined : piece(prompt, null, null),
    piece,
    usage: (usage) => ({ ...head, object: 'text_completion', choices: [], usage }),
  };
}

export function usage(report: AnswerReport, seconds: number): CompletionUsage {
  return {
    prompt_tokens: report.promptTokens,
    completion_tokens: report.generatedTokens,
    total_tokens: report.promptTokens + report.generatedTokens,
    extra: {
      e2e_latency_s: seconds,
      prefill_tokens_per_s: report.prefillTokensPerSecond,
      decode_tokens_per_s: report.decodeTokensPerSecond,
      time_to_first_token_s: report.timeToFirstToken,
      time_per_output_token_s: report.decodeTokensPerSecond > 0 ? 1 / report.decodeTokensPerSecond : 0,
      cached_prompt_tokens: report.cachedTokens,
    },
  };
}

function bad(reason: string): EngineError {
  return new EngineError('BadParameter', reason);
}
