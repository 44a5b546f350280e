// What goes wrong on other people's machines: each with what happened and what to do.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { PATIENCE, ask, choose, conversations, giveNotes, inBrowser, launch, loaded, noticeText, patchWorker, show, started, until } from './browser.mjs';
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

/** A page whose worker finds another browser. */
async function patched(code, test, settings = GREEDY) {
  const { context, close } = await launch({ serviceWorkers: 'block' });
  try {
    await context.addInitScript((kept) => localStorage.setItem('settings', kept), JSON.stringify(settings));
    await patchWorker(context, code);
    const page = await context.newPage();
    await page.goto(`${server.origin}/`);
    await started(page);
    // Where the browser under test gives storage.
    await giveNotes(page).catch(() => undefined);
    await test(page);
  } finally {
    await close();
  }
}

test('no WebGPU', options, async () => {
  await patched("Object.defineProperty(WorkerNavigator.prototype, 'gpu', { value: undefined });", async (page) => {
    assert.match(await noticeText(page, 'device'), /cannot run models here[\s\S]*no WebGPU[\s\S]*use a current/);
    await choose(page, server, 'tiny');
    assert.match(await noticeText(page, 'models'), /cannot run models here/);
  });
});

test('no adapter', options, async () => {
  await patched('GPU.prototype.requestAdapter = async () => null;', async (page) => {
    assert.match(await noticeText(page, 'device'), /No usable GPU[\s\S]*hardware acceleration/);
  });
});

test('an adapter without f16 and without subgroups answers the same', options, async () => {
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

/** Counts how a worker's pipelines are made. */
const COUNTED = `
  globalThis.made = { sideBySide: 0, oneByOne: 0 };
  const { createComputePipelineAsync: later, createComputePipeline: now } = GPUDevice.prototype;
  GPUDevice.prototype.createComputePipelineAsync = async function (descriptor) {
    made.sideBySide += 1;
    if (globalThis.refusesLater) throw new GPUPipelineError('refused', { reason: 'internal' });
    return later.call(this, descriptor);
  };
  GPUDevice.prototype.createComputePipeline = function (descriptor) { made.oneByOne += 1; return now.call(this, descriptor); };`;

for (const [name, code, expected] of [
  ['pipelines are made side by side', '', ({ sideBySide, oneByOne }) => sideBySide > 10 && oneByOne < sideBySide / 2],
  ['pipelines that cannot be made so are made one by one', 'globalThis.refusesLater = true;', ({ oneByOne }) => oneByOne > 10],
]) {
  test(name, options, async () => {
    await patched(code + COUNTED, async (page) => {
      await choose(page, server, 'tiny');
      await loaded(page);
      await ask(page, 'Hello');
      const { text } = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 8);
      assert.equal((await conversations(page))[0].messages.at(-1).content, text);
      const made = await page.workers()[0].evaluate(() => globalThis.made);
      assert.ok(expected(made), JSON.stringify(made));
    });
  });
}

test('a browser that looks for reads by its clock is made to look', options, async () => {
  // Firefox: it looks when something is submitted, too.
  const clocked = `
    Object.defineProperty(WorkerNavigator.prototype, 'userAgent', { value: 'Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0' });
    globalThis.looks = 0;
    const submit = GPUQueue.prototype.submit;
    const { mapAsync } = GPUBuffer.prototype;
    let wake = [];
    GPUQueue.prototype.submit = function (commands) {
      submit.call(this, commands);
      if (commands.length > 0) return;
      looks += 1;
      wake.splice(0).forEach((resolve) => resolve());
    };
    GPUBuffer.prototype.mapAsync = async function (...range) {
      await mapAsync.apply(this, range);
      await new Promise((resolve) => wake.push(resolve));
    };`;
  await patched(clocked, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await ask(page, 'Hello');
    const { text } = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 8);
    assert.equal((await conversations(page))[0].messages.at(-1).content, text);
    const before = await page.workers()[0].evaluate(() => globalThis.looks);
    assert.ok(before >= 8, `${before} looks`);
    // Nothing is read: nothing is looked for.
    await new Promise((resolve) => { setTimeout(resolve, 300); });
    const after = await page.workers()[0].evaluate(() => globalThis.looks);
    assert.ok(after <= before + 1, `${after - before} looks when nothing is read`);
  });
});

test('not enough memory on the GPU', options, async () => {
  // As a browser says it: the buffer is there, the error comes afterwards.
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
    assert.match(await noticeText(page, 'models'), /not enough memory[\s\S]*shorter context[\s\S]*smaller model/);
    assert.ok(await page.locator('#composer-text').isDisabled());
  });
});

test('a browser that gives no storage', options, async () => {
  await patched("StorageManager.prototype.getDirectory = async () => { throw new DOMException('denied', 'SecurityError'); };", async (page) => {
    assert.match(await noticeText(page, 'storage'), /storage failed[\s\S]*private browsing/);
    // A folder needs none.
    await page.getByLabel('A folder in MLC format').setInputFiles(join(MODELS, 'tiny'));
    await loaded(page);
    await ask(page, 'Hello');
  });
});

test('a fault of the engine itself', options, async () => {
  const fault = `
    const instantiate = WebAssembly.instantiateStreaming;
    let calls = 0;
    WebAssembly.instantiateStreaming = async (...args) => {
      const source = await instantiate.apply(WebAssembly, args);
      const exports = { ...source.instance.exports };
      const answer = exports.chatengine_answer;
      exports.chatengine_answer = (...given) => { if (calls++ === 0) throw new WebAssembly.RuntimeError('unreachable'); return answer(...given); };
      return { module: source.module, instance: { exports } };
    };`;
  await patched(fault, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    // The worker is replaced, the model loaded again; its first answer fails there too, since it is patched alike.
    await page.getByLabel('Message', { exact: true }).fill('Hello');
    await page.keyboard.press('Enter');
    assert.match(await noticeText(page, 'chat'), /The engine stopped/);
  });
});

for (const [kind, sampling] of [['greedy', { temperature: 0 }], ['random', { temperature: 1 }]]) {
  test(`the GPU is lost, and the ${kind} answer goes on`, options, async () => {
    await inBrowser(server, { settings: { ...sampling, max_tokens: 200 }, expects: [/GPU|lost|context/i] }, async (page, context) => {
      await choose(page, server, 'tiny');
      await loaded(page);
      await page.getByLabel('Message', { exact: true }).fill('Hello');
      await page.keyboard.press('Enter');
      const body = page.locator('article.assistant .body');
      await until(page, () => document.querySelector('article.assistant .body')?.textContent.length > 10);
      const before = await body.textContent();
      // Ends the process that drives it.
      const devtools = await context.newCDPSession(page);
      await devtools.send('Browser.crashGpuProcess');
      assert.match(await noticeText(page, 'chat'), /The GPU was lost[\s\S]*loaded again, and the answer goes on/);
      await page.locator('#messages .stats').waitFor();
      const { content } = (await conversations(page))[0].messages.at(-1);
      const letters = (text) => text.replace(/[^\p{L}]+/gu, '');
      // As it was drawn: without what Markdown takes.
      assert.ok(letters(await body.textContent()).startsWith(letters(before).slice(0, 8)), `${before} / ${content}`);
      if (kind === 'greedy') assert.equal(content, (await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 200)).text);
      // The device is there for the next one.
      await ask(page, 'And?');
    });
  });
}
