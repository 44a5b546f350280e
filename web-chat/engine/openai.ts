// Requests and answers in the form that users of OpenAI's and WebLLM's interfaces know.

import { EngineError } from './errors';
import type { AnswerReport, ChatMessage, Sampling } from './protocol';

export interface ChatCompletionRequest {
  messages: ChatMessage[];
  stream?: boolean;
  stream_options?: { include_usage?: boolean };
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  max_tokens?: number | null;
  stop?: string | string[] | null;
  seed?: number | null;
  repetition_penalty?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  /** Ignored: an engine has one model. */
  model?: string | null;
  n?: number | null;
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

export interface ChatCompletion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  choices: [{
    index: 0;
    message: { role: 'assistant'; content: string };
    finish_reason: FinishReason;
    logprobs: null;
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
    logprobs: null;
  }];
  usage?: CompletionUsage;
}

const KNOWN = new Set([
  'messages', 'stream', 'stream_options', 'temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'stop', 'seed',
  'repetition_penalty', 'presence_penalty', 'frequency_penalty', 'model', 'n', 'user',
]);
const ROLES = ['system', 'user', 'assistant', 'tool'];

/** The conversation and the settings of a request. What this engine cannot do is refused, not passed over. */
export function readRequest(request: ChatCompletionRequest): { messages: ChatMessage[]; sampling: Sampling } {
  for (const [name, value] of Object.entries(request)) {
    if (value !== null && value !== undefined && !KNOWN.has(name)) throw bad(`\`${name}\` is not supported`);
  }
  if ((request.n ?? 1) !== 1) throw bad('`n` must be 1');
  const { messages } = request;
  if (!Array.isArray(messages) || messages.length === 0) throw bad('`messages` must be a list of at least one message');
  for (const [i, message] of messages.entries()) {
    if (!ROLES.includes(message.role)) throw bad(`\`messages[${i}].role\` must be one of ${ROLES.join(', ')}`);
    if (typeof message.content !== 'string') throw bad(`\`messages[${i}].content\` must be a text`);
    if (message.role === 'system' && i > 0) throw bad('a system message may only come first');
  }
  const last = messages.at(-1)!.role;
  if (last !== 'user' && last !== 'tool') throw bad('the last message must be of `user` or `tool`');

  const sampling: Record<string, unknown> = {};
  for (const name of ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed', 'repetition_penalty', 'presence_penalty', 'frequency_penalty'] as const) {
    const value = request[name];
    if (value === null || value === undefined) continue;
    if (typeof value !== 'number' || !Number.isFinite(value)) throw bad(`\`${name}\` must be a number`);
    const isCount = ['top_k', 'max_tokens', 'seed'].includes(name);
    if (isCount && (!Number.isSafeInteger(value) || value < 0)) throw bad(`\`${name}\` must be a whole number of 0 or more`);
    sampling[name] = value;
  }
  if (request.stop) sampling['stop'] = [request.stop].flat();
  return { messages: messages.map(({ role, content }) => ({ role, content })), sampling: sampling as Sampling };
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
