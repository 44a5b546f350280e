// The package as an app uses it: the page in its README, and its whole interface.

import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { PATIENCE, launch, until } from './browser.mjs';
import { MODELS, nativeAnswer, tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const PACKAGE = fileURLToPath(new URL('../package/', import.meta.url));
const options = { timeout: 4 * PATIENCE };
let server;
let app;
let browser;

before(async () => {
  await tinyModel();
  app = await mkdtemp(join(tmpdir(), 'web-chat-app-'));
  await mkdir(join(app, 'empty'));
  await writeFile(join(app, 'empty', 'index.html'), '<!doctype html><title>an app</title>');
  server = await serve({ '/': `${app}/`, '/web-chat/': PACKAGE, '/models/': `${MODELS}/`, '/hub/tiny/resolve/main/': `${MODELS}/tiny/` });
  browser = await launch();
});
after(async () => {
  await browser.close();
  server.close();
  await rm(app, { recursive: true, force: true });
});

test('the page in the README runs', options, async () => {
  const readme = await readFile(join(PACKAGE, 'README.md'), 'utf8');
  const [, html] = /```html\n([\s\S]*?)```/.exec(readme);
  const page = await browser.context.newPage();
  const model = /createEngine\('([^']+)'/.exec(html)[1];
  const adapted = html.replace(model, '/models/tiny').replace('stream: true', 'stream: true, temperature: 0, max_tokens: 16');
  assert.notEqual(adapted, html);
  await writeFile(join(app, 'index.html'), adapted);
  await page.goto(`${server.origin}/`);
  const { text } = await nativeAnswer(join(MODELS, 'tiny'), 'Why is the sky blue?', 16);
  await until(page, (expected) => document.querySelector('#answer').textContent === expected, text);
});

test('the interface has OpenAI’s and WebLLM’s form', options, async () => {
  const page = await browser.context.newPage();
  await page.goto(`${server.origin}/empty/`);
  const seen = await page.evaluate(async () => {
    const { CreateMLCEngine, EngineError } = await import('/web-chat/index.js');
    const reports = [];
    const engine = await CreateMLCEngine('/models/tiny', { initProgressCallback: (report) => reports.push(report), context: 512 });
    const messages = [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'Hello' }];
    const request = { messages, temperature: 0, max_tokens: 20 };
    const whole = await engine.chat.completions.create(request);
    const chunks = [];
    const stream = await engine.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) chunks.push(chunk);
    const message = await engine.getMessage();
    const stats = await engine.runtimeStatsText();

    // Interrupt by the method, and by leaving the loop.
    const long = { messages, temperature: 0, max_tokens: 400, stream: true };
    let reason;
    let pieces = 0;
    for await (const { choices: [choice] } of await engine.chat.completions.create(long)) {
      if (++pieces === 5) await engine.interruptGenerate();
      reason = choice?.finish_reason ?? reason;
    }
    for await (const { choices: [choice] } of await engine.chat.completions.create(long)) {
      if (choice?.delta.content) break;
    }
    await engine.resetChat();
    const fresh = await engine.chat.completions.create(request);
    // A stop string, and a seed.
    const full = fresh.choices[0].message.content;
    const at = Math.floor(full.length / 2);
    const stopped = await engine.chat.completions.create({ ...request, stop: full.slice(at, at + 4) });
    const random = { ...request, temperature: 1.5, seed: 3 };
    const [one, two] = [await engine.chat.completions.create(random), await engine.chat.completions.create(random)];

    const refusals = {};
    for (const [name, bad] of Object.entries({
      n: { n: 2 }, tools: { tools: [{}] }, messages: { messages: [] }, role: { messages: [{ role: 'x', content: '' }] },
      last: { messages: [{ role: 'assistant', content: 'I' }] }, temperature: { temperature: -1 }, top_p: { top_p: 2 }, seed: { seed: 1.5 },
    })) {
      refusals[name] = await engine.chat.completions.create({ ...request, ...bad })
        .then(() => 'accepted', (error) => `${error instanceof EngineError} ${error.kind} ${error.message}`);
    }
    const kept = await engine.models.kept();
    const plan = await engine.models.plan('/models/tiny');
    const info = await engine.loaded();
    const vendor = await engine.getGPUVendor();
    await engine.unload();
    const unloaded = await engine.chat.completions.create(request).catch((error) => error.kind);
    return { reports, whole, chunks, message, stats, reason, pieces, fresh, full, at, stopped, one, two, refusals, kept, plan, info, vendor, unloaded };
  });

  const expected = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 20, { system: 'Be brief.' });
  assert.equal(seen.whole.object, 'chat.completion');
  assert.equal(seen.whole.choices[0].message.content, expected.text);
  assert.equal(seen.whole.choices[0].finish_reason, expected.finish_reason);
  assert.equal(seen.whole.usage.prompt_tokens, expected.prompt_token_ids.length);
  assert.equal(seen.whole.usage.completion_tokens, expected.token_ids.length);
  assert.equal(seen.whole.usage.total_tokens, expected.prompt_token_ids.length + expected.token_ids.length);
  for (const name of ['e2e_latency_s', 'prefill_tokens_per_s', 'decode_tokens_per_s', 'time_to_first_token_s', 'time_per_output_token_s']) {
    assert.ok(seen.whole.usage.extra[name] > 0, name);
  }

  const [first] = seen.chunks;
  assert.equal(first.object, 'chat.completion.chunk');
  assert.deepEqual(first.choices[0].delta, { role: 'assistant', content: '' });
  assert.equal(seen.chunks.map(({ choices: [choice] }) => choice?.delta.content ?? '').join(''), expected.text);
  assert.equal(seen.chunks.at(-2).choices[0].finish_reason, expected.finish_reason);
  assert.deepEqual(seen.chunks.at(-1).choices, []);
  assert.equal(seen.chunks.at(-1).usage.completion_tokens, expected.token_ids.length);
  assert.ok(seen.chunks.slice(0, -1).every(({ usage }) => usage === undefined));
  assert.equal(seen.message, expected.text);
  assert.match(seen.stats, /^prefill: \d+\.\d{4} tokens\/sec, decoding: \d+\.\d{4} tokens\/sec$/);

  assert.equal(seen.reason, 'abort');
  assert.equal(seen.fresh.choices[0].message.content, expected.text);
  assert.equal(seen.fresh.usage.extra.cached_prompt_tokens, 0);
  const [stopped] = seen.stopped.choices;
  assert.equal(stopped.finish_reason, 'stop');
  assert.equal(stopped.message.content, seen.full.slice(0, seen.full.indexOf(seen.full.slice(seen.at, seen.at + 4))));
  assert.equal(seen.one.choices[0].message.content, seen.two.choices[0].message.content);

  for (const [name, refusal] of Object.entries(seen.refusals)) assert.match(refusal, /^true BadParameter /, name);
  assert.match(seen.refusals.tools, /`tools` is not supported/);

  assert.deepEqual(seen.kept.map(({ id, isWhole }) => [id, isWhole]), [[`${server.origin}/models/tiny`, true]]);
  assert.equal(seen.info.context, 512);
  assert.ok(seen.plan.weightBytes > 100e3 && seen.info.weightBytes >= 0.9 * seen.plan.weightBytes);
  assert.ok(seen.reports.some(({ phase, progress }) => phase === 'load' && progress === 1));
  assert.match(seen.reports[0].text, /^(Downloading|Loading): /);
  assert.equal(typeof seen.vendor, 'string');
  assert.equal(seen.unloaded, 'NotLoaded');
});

test('further parts of WebLLM’s interface', options, async () => {
  const page = await browser.context.newPage();
  await page.goto(`${server.origin}/empty/`);
  const seen = await page.evaluate(async () => {
    const { MLCEngine, deleteModelAllInfoInCache, hasModelInCache, modelRef } = await import('/web-chat/index.js');
    const reports = [];
    const engine = new MLCEngine();
    engine.setInitProgressCallback((report) => reports.push(report));
    await engine.reload('/models/tiny', { context_window_size: 384, temperature: 0 });
    const { context } = await engine.loaded();
    const parts = [{ type: 'text', text: 'Hel' }, { type: 'text', text: 'lo' }];
    const request = { messages: [{ role: 'user', content: parts }], max_tokens: 12, stream: null, stream_options: null };
    const withLogprobs = await engine.chatCompletion({ ...request, logprobs: true, top_logprobs: 2 });
    const streamed = [];
    for await (const { choices: [choice] } of await engine.chatCompletion({ ...request, logprobs: true, stream: true })) {
      streamed.push(...(choice.logprobs?.content ?? []));
    }
    const biased = await engine.chatCompletion({ ...request, logit_bias: { 300: 100 } });
    const text = { prompt: 'user: Hello<|end|>assistant:', max_tokens: 12 };
    const completed = await engine.completions.create({ ...text, echo: true });
    const pieces = [];
    for await (const { choices: [choice] } of await engine.completions.create({ ...text, stream: true })) pieces.push(choice.text);
    const refusals = [];
    for (const bad of [{ top_logprobs: 2 }, { logprobs: true, top_logprobs: 21 }, { logit_bias: { x: 1 } }, { logit_bias: { 1: 101 } },
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: '' } }] }] }]) {
      refusals.push(await engine.chatCompletion({ ...request, ...bad }).then(() => 'accepted', ({ kind }) => kind));
    }
    await engine.unload();
    const before = await hasModelInCache('/models/tiny');
    await deleteModelAllInfoInCache('/models/tiny');
    const after = await hasModelInCache('/models/tiny');
    const named = modelRef('SmolLM2-360M-Instruct-q4f16_1-MLC').base;
    return { context, withLogprobs, streamed, biased, completed, pieces, refusals, before, after, named, reports: reports.length };
  });

  const folder = join(MODELS, 'tiny');
  const expected = await nativeAnswer(folder, 'Hello', 12, { flags: ['--logprobs', '2'] });
  assert.equal(seen.context, 384);
  assert.ok(seen.reports > 0);
  const [{ message, logprobs: { content } }] = seen.withLogprobs.choices;
  assert.equal(message.content, expected.text);
  assert.equal(content.length, expected.token_ids.length);
  for (const [i, { token, bytes, logprob, top_logprobs: top }] of content.entries()) {
    assert.ok(Math.abs(logprob - expected.logprobs[i].logprob) < 1e-3);
    assert.deepEqual(bytes, token.includes('\ufffd') ? null : [...new TextEncoder().encode(token)]);
    // A greedy answer takes the most likely token.
    assert.equal(top.length, 2);
    assert.deepEqual([top[0].token, top[0].logprob], [token, logprob]);
    assert.ok(Math.abs(top[1].logprob - expected.logprobs[i].top[1].logprob) < 1e-3);
  }
  assert.deepEqual(seen.streamed.map(({ token }) => token), content.map(({ token }) => token));
  const always = await nativeAnswer(folder, 'Hello', 12, { flags: ['--logit-bias', '300=100'] });
  assert.equal(seen.biased.choices[0].message.content, always.text);
  assert.notEqual(always.text, expected.text);
  // The prompt is the chat template's, so the answer is the chat's.
  assert.equal(seen.completed.object, 'text_completion');
  assert.equal(seen.completed.choices[0].text, `user: Hello<|end|>assistant:${expected.text}`);
  assert.equal(seen.completed.usage.prompt_tokens, expected.prompt_token_ids.length);
  assert.equal(seen.pieces.join(''), expected.text);
  assert.deepEqual(seen.refusals, Array(5).fill('BadParameter'));
  assert.deepEqual([seen.before, seen.after], [true, false]);
  assert.equal(seen.named, 'https://huggingface.co/mlc-ai/SmolLM2-360M-Instruct-q4f16_1-MLC/resolve/main/');
});

test('an app’s list of models and its worker are accepted', options, async () => {
  const page = await browser.context.newPage();
  await page.goto(`${server.origin}/empty/`);
  const seen = await page.evaluate(async (origin) => {
    const { CreateWebWorkerMLCEngine, hasModelInCache, prebuiltAppConfig } = await import('/web-chat/index.js');
    const record = { model_id: 'mine', model: `${origin}/hub/tiny`, model_lib: 'none.wasm', overrides: { context_window_size: 320 } };
    const appConfig = { model_list: [...prebuiltAppConfig.model_list, record] };
    const worker = new Worker(URL.createObjectURL(new Blob(['setInterval(() => postMessage(0), 5)'])));
    let ticks = 0;
    worker.onmessage = () => { ticks += 1; };
    const engine = await CreateWebWorkerMLCEngine(worker, 'mine', { appConfig }, { temperature: 0, max_tokens: 12 });
    const { context } = await engine.loaded();
    const { choices: [{ message }] } = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Hello' }] });
    await engine.reload('/models/tiny', { context_window_size: 256 });
    const other = (await engine.loaded()).context;
    await engine.unload();
    const ended = ticks;
    await new Promise((resolve) => { setTimeout(resolve, 100); });
    const kept = await hasModelInCache('mine', appConfig);
    return { context, message, other, kept, ticks: ticks - ended, list: prebuiltAppConfig.model_list };
  }, server.origin);
  assert.equal(seen.context, 320);
  assert.equal(seen.message.content, (await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 12)).text);
  assert.deepEqual([seen.other, seen.kept, seen.ticks], [256, true, 0]);
  for (const { model, model_id: id, vram_required_MB: megabytes } of seen.list) {
    assert.ok(model.endsWith(`/${id}`) && megabytes > 200 && megabytes < 10e3, `${model} ${megabytes}`);
  }
});
