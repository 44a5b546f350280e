// Failures of browsers and GPUs: each shows a notice with a hint, or is handled without the user.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { PATIENCE, ask, choose, conversations, inBrowser, launch, loaded, noticeText, patchWorker, shareAdapterCache, show, started, until } from './browser.mjs';
import { MODELS, nativeAnswer, tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const DIST = new URL('../dist/', import.meta.url).pathname;
const options = { timeout: 4 * PATIENCE };
const GREEDY = { temperature: 0, max_tokens: 8 };
let server;

before(async () => {
  await tinyModel();
  server = await serve({ '/': DIST, '/models/': `${MODELS}/` });
});
after(() => server.close());

/** Runs a test on a page whose worker runs `code` first, which changes the browser's interfaces. */
async function patched(code, test, settings = GREEDY) {
  const { context, close } = await launch({ serviceWorkers: 'block' });
  try {
    await context.addInitScript((text) => localStorage.setItem('settings', text), JSON.stringify(settings));
    await patchWorker(context, code);
    const page = await context.newPage();
    await page.goto(`${server.origin}/`);
    await started(page);
    // Fails if the browser under test has no storage.
    await shareAdapterCache(page).catch(() => undefined);
    await test(page);
  } finally {
    await close();
  }
}

test('no WebGPU', options, async () => {
  await patched("Object.defineProperty(WorkerNavigator.prototype, 'gpu', { value: undefined });", async (page) => {
    assert.match(await noticeText(page, 'device'), /cannot run models here[\s\S]*does not offer WebGPU[\s\S]*use a current/);
    await choose(page, server, 'tiny');
    assert.match(await noticeText(page, 'models'), /cannot run models here/);
  });
});

test('no adapter', options, async () => {
  await patched('GPU.prototype.requestAdapter = async () => null;', async (page) => {
    assert.match(await noticeText(page, 'device'), /No usable GPU[\s\S]*hardware acceleration/);
  });
});

test('an adapter without f16 and subgroups gives the same answer', options, async () => {
  const without = `
    const has = GPUSupportedFeatures.prototype.has;
    GPUSupportedFeatures.prototype.has = function (name) { return name !== 'shader-f16' && name !== 'subgroups' && has.call(this, name); };`;
  await patched(without, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await ask(page, 'Hello');
    const expected = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 8);
    assert.equal((await conversations(page))[0].messages.at(-1).content, expected.text);
    await show(page, 'device');
    assert.match(await page.locator('#device-facts').innerText(), /Subgroups\s+not used/);
  });
});

/** Counts a worker's asynchronous and synchronous pipeline creations. */
const COUNT_PIPELINES = `
  globalThis.created = { async: 0, sync: 0 };
  const { createComputePipelineAsync: createAsync, createComputePipeline: create } = GPUDevice.prototype;
  GPUDevice.prototype.createComputePipelineAsync = async function (descriptor) {
    created.async += 1;
    if (globalThis.rejectsAsync) throw new GPUPipelineError('refused', { reason: 'internal' });
    return createAsync.call(this, descriptor);
  };
  GPUDevice.prototype.createComputePipeline = function (descriptor) { created.sync += 1; return create.call(this, descriptor); };`;

for (const [name, code, expected] of [
  ['pipelines are compiled in parallel', '', (created) => created.async > 10 && created.sync < created.async / 2],
  ['pipelines are compiled one by one if parallel compilation fails', 'globalThis.rejectsAsync = true;', (created) => created.sync > 10],
]) {
  test(name, options, async () => {
    await patched(code + COUNT_PIPELINES, async (page) => {
      await choose(page, server, 'tiny');
      await loaded(page);
      await ask(page, 'Hello');
      const { text } = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 8);
      assert.equal((await conversations(page))[0].messages.at(-1).content, text);
      const created = await page.workers()[0].evaluate(() => globalThis.created);
      assert.ok(expected(created), JSON.stringify(created));
    });
  });
}

test('in Firefox, pending reads are polled by empty submissions', options, async () => {
  // Acts like Firefox: a read completes only at a submission.
  const likeFirefox = `
    Object.defineProperty(WorkerNavigator.prototype, 'userAgent', { value: 'Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0' });
    globalThis.polls = 0;
    const submit = GPUQueue.prototype.submit;
    const { mapAsync } = GPUBuffer.prototype;
    let wake = [];
    GPUQueue.prototype.submit = function (commands) {
      submit.call(this, commands);
      if (commands.length > 0) return;
      polls += 1;
      wake.splice(0).forEach((resolve) => resolve());
    };
    GPUBuffer.prototype.mapAsync = async function (...range) {
      await mapAsync.apply(this, range);
      await new Promise((resolve) => wake.push(resolve));
    };`;
  await patched(likeFirefox, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await ask(page, 'Hello');
    const { text } = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 8);
    assert.equal((await conversations(page))[0].messages.at(-1).content, text);
    const before = await page.workers()[0].evaluate(() => globalThis.polls);
    assert.ok(before >= 8, `${before} polls`);
    // Without pending reads, nothing is submitted.
    await new Promise((resolve) => { setTimeout(resolve, 300); });
    const after = await page.workers()[0].evaluate(() => globalThis.polls);
    assert.ok(after <= before + 1, `${after - before} polls without pending reads`);
  });
});

test('out of GPU memory', options, async () => {
  // Browsers report this after the buffer was created.
  const full = `
    const create = GPUDevice.prototype.createBuffer;
    let bytes = 0;
    GPUDevice.prototype.createBuffer = function (descriptor) {
      bytes += descriptor.size;
      if (bytes > 300e3) setTimeout(() => this.dispatchEvent(new GPUUncapturedErrorEvent('uncapturederror', { error: new GPUOutOfMemoryError('full') })));
      return create.call(this, descriptor);
    };`;
  await patched(full, async (page) => {
    await choose(page, server, 'tiny');
    assert.match(await noticeText(page, 'models'), /not have enough memory[\s\S]*shorter context[\s\S]*smaller model/);
    assert.ok(await page.locator('#composer-text').isDisabled());
  });
});

test('a browser without storage', options, async () => {
  await patched("StorageManager.prototype.getDirectory = async () => { throw new DOMException('denied', 'SecurityError'); };", async (page) => {
    assert.match(await noticeText(page, 'storage'), /storage failed[\s\S]*private browsing/);
    // A local folder needs no storage.
    await page.getByLabel('Local folder in MLC format').setInputFiles(join(MODELS, 'tiny'));
    await loaded(page);
    await ask(page, 'Hello');
  });
});

test('a crash of the engine', options, async () => {
  const crash = `
    const instantiate = WebAssembly.instantiateStreaming;
    let calls = 0;
    WebAssembly.instantiateStreaming = async (...args) => {
      const source = await instantiate.apply(WebAssembly, args);
      const exports = { ...source.instance.exports };
      const answer = exports.chatengine_answer;
      exports.chatengine_answer = (...given) => { if (calls++ === 0) throw new WebAssembly.RuntimeError('unreachable'); return answer(...given); };
      return { module: source.module, instance: { exports } };
    };`;
  await patched(crash, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    // The page starts a new worker and loads the model again. The new worker is patched too, so its first answer also fails.
    await page.getByLabel('Message', { exact: true }).fill('Hello');
    await page.keyboard.press('Enter');
    assert.match(await noticeText(page, 'chat'), /The engine stopped/);
  });
});

for (const [kind, sampling] of [['greedy', { temperature: 0 }], ['random', { temperature: 1 }]]) {
  test(`a ${kind} answer continues after the GPU was lost`, options, async () => {
    await inBrowser(server, { settings: { ...sampling, max_tokens: 200 }, expects: [/GPU|lost|context/i] }, async (page, context) => {
      await choose(page, server, 'tiny');
      await loaded(page);
      await page.getByLabel('Message', { exact: true }).fill('Hello');
      await page.keyboard.press('Enter');
      const body = page.locator('article.assistant .body');
      await until(page, () => document.querySelector('article.assistant .body')?.textContent.length > 10);
      const before = await body.textContent();
      // Ends the browser's GPU process.
      const devtools = await context.newCDPSession(page);
      await devtools.send('Browser.crashGpuProcess');
      assert.match(await noticeText(page, 'chat'), /The GPU was lost[\s\S]*loaded again, and the answer continues/);
      await page.locator('#messages .stats').waitFor();
      const { content } = (await conversations(page))[0].messages.at(-1);
      const letters = (text) => text.replace(/[^\p{L}]+/gu, '');
      // The drawn text has no Markdown characters: compare letters.
      assert.ok(letters(await body.textContent()).startsWith(letters(before).slice(0, 8)), `${before} / ${content}`);
      if (kind === 'greedy') assert.equal(content, (await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 200)).text);
      // The new device also answers the next message.
      await ask(page, 'And?');
    });
  });
}
