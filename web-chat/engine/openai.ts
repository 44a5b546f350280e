// Requests and answers in the form that users of OpenAI's and WebLLM's interfaces know.

import { EngineError } from './errors';
import type { AnswerReport, ChatMessage, Sampling, TokenLogprob } from './protocol';

/** Settings that a request may have, and those that a model is loaded with. */
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
  /** From -100 to 100, by a token's id. */
  logit_bias?: Record<string, number> | null;
}

interface RequestBase extends GenerationSettings {
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  /** Whether to tell how likely each token was, by the model's own distribution. */
  logprobs?: boolean | null;
  /** How many of the likeliest in its place as well, up to 20. */
  top_logprobs?: number | null;
  /** Ignored: an engine has one model. */
  model?: string | null;
  n?: number | null;
}

/** A message; its content may come in parts, of text alone. */
export interface RequestMessage {
  role: ChatMessage['role'];
  content: string | { type: 'text'; text: string }[];
}

export interface ChatCompletionRequest extends RequestBase {
  messages: RequestMessage[];
}

/** A plain text that is gone on with, without the model's chat template. */
export interface CompletionRequest extends RequestBase {
  prompt: string;
  /** Whether the prompt comes first in the text. */
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
    /** Tokens of the prompt that the cache held already. */
    cached_prompt_tokens: number;
  };
}

export type FinishReason = 'stop' | 'length' | 'abort';

/** `null` where they were not asked for. */
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

/** Of either form, whole or in a stream. */
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
const MOST_LOGPROBS = 20;
const ROLES = ['system', 'user', 'assistant', 'tool'];

/** The conversation of a request. */
export function readMessages({ messages }: ChatCompletionRequest): ChatMessage[] {
  if (!Array.isArray(messages) || messages.length === 0) throw bad('`messages` must be a list of at least one message');
  const read = messages.map(({ role, content }, i) => {
    if (!ROLES.includes(role)) throw bad(`\`messages[${i}].role\` must be one of ${ROLES.join(', ')}`);
    if (role === 'system' && i > 0) throw bad('a system message may only come first');
    const parts = Array.isArray(content) ? content.map((part) => (part?.type === 'text' ? part.text : undefined)) : [content];
    if (parts.some((part) => typeof part !== 'string')) throw bad(`\`messages[${i}].content\` must be a text, or parts of type \`text\``);
    return { role, content: parts.join('') };
  });
  const last = read.at(-1)!.role;
  if (last !== 'user' && last !== 'tool') throw bad('the last message must be of `user` or `tool`');
  return read;
}

/** The settings of a request, over those of the model. What this engine cannot do is refused, not passed over. */
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
    if (COUNTS.includes(name) && (!Number.isSafeInteger(value) || value < 0)) throw bad(`\`${name}\` must be a whole number of 0 or more`);
    sampling[name] = value;
  }
  const stop = request.stop ?? defaults.stop;
  if (stop) sampling['stop'] = [stop].flat();
  const bias = request.logit_bias ?? defaults.logit_bias;
  for (const [id, value] of Object.entries(bias ?? {})) {
    if (!/^\d+$/.test(id) || typeof value !== 'number' || !(Math.abs(value) <= 100)) {
      throw bad('`logit_bias` must have numbers from -100 to 100 by ids of tokens');
    }
  }
  if (bias) sampling['logit_bias'] = bias;
  const top = request.top_logprobs ?? 0;
  if (!Number.isSafeInteger(top) || top < 0 || top > MOST_LOGPROBS) throw bad(`\`top_logprobs\` must be a whole number up to ${MOST_LOGPROBS}`);
  if (request.logprobs) sampling['logprobs'] = top;
  else if (top > 0) throw bad('`top_logprobs` wants `logprobs` to be true');
  return sampling as Sampling;
}

/** How one of the two interfaces says an answer: whole, and piece by piece. */
export interface Form<Whole, Piece> {
  whole(answer: Answer, usage: CompletionUsage): Whole;
  /** What comes before the first piece of text. */
  first?: Piece | undefined;
  piece(text: string, reason: FinishReason | null, logprobs: Logprobs): Piece;
  /** What comes last, where it is asked for. */
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

export function chatForm(head: Head): Form<ChatCompletion, ChatCompletionChunk> {
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

export function textForm(head: Head, prompt: string | undefined): Form<Completion, Completion> {
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
