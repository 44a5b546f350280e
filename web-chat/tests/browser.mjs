// A browser without a GPU: WebGPU by its software adapter.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { OUTPUT } from './models.mjs';

const ARGUMENTS = [
  '--enable-unsafe-webgpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--no-sandbox',
];

/** How long anything in a test may take, in milliseconds: two slow cores are enough. */
export const PATIENCE = 60_000;

/** A browser with a profile of its own, which is gone afterwards. */
export async function launch({ args = [], env = {}, ...options } = {}) {
  const profile = await mkdtemp(join(tmpdir(), 'web-chat-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM,
    headless: true,
    args: [...ARGUMENTS, ...args],
    env: { ...process.env, ...env },
    viewport: { width: 1280, height: 800 },
    ...options,
  });
  context.setDefaultTimeout(PATIENCE);
  return {
    context,
    async close() {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}

/** What the engine notes of an adapter and its kernels. One test's browser has it from another's: a software GPU takes seconds. */
const NOTES = 'adapter.json';
const KEPT_NOTES = join(OUTPUT, NOTES);

export async function writeNotes(page, text) {
  await page.evaluate(async ([name, content]) => {
    const file = await (await navigator.storage.getDirectory()).getFileHandle(name, { create: true });
    const stream = await file.createWritable();
    await stream.write(content);
    await stream.close();
  }, [NOTES, text]);
}

export async function readNotes(page) {
  return page.evaluate(async (name) => {
    const file = await (await navigator.storage.getDirectory()).getFileHandle(name);
    return (await file.getFile()).text();
  }, NOTES);
}

/** What another test's browser found out, where there was one. */
export async function giveNotes(page) {
  const known = await readFile(KEPT_NOTES, 'utf8').catch(() => undefined);
  if (known) await writeNotes(page, known);
}

/** Runs a test in a browser of its own, and fails it where the page had a fault that no notice shows. */
export async function inBrowser(server, options, test) {
  const { expects = [], settings, isFirst = false, ...launchOptions } = options;
  const browser = await launch(launchOptions);
  const faults = [];
  browser.context.on('weberror', (error) => faults.push(String(error.error())));
  browser.context.on('console', (message) => {
    if (message.type() === 'error') faults.push(message.text());
  });
  if (settings) await browser.context.addInitScript((kept) => localStorage.setItem('settings', kept), JSON.stringify(settings));
  try {
    const page = await openPage(browser.context, server);
    if (!isFirst) await giveNotes(page);
    await test(page, browser.context);
    const notes = page.isClosed() ? undefined : await readNotes(page).catch(() => undefined);
    if (notes) await writeFile(KEPT_NOTES, notes);
    const unexpected = faults.filter((fault) => !expects.some((pattern) => pattern.test(fault)));
    assert.deepEqual(unexpected, [], 'faults in the console');
  } finally {
    await browser.close();
  }
}

/** The page, when it has asked storage and device. */
export async function openPage(context, server) {
  const page = context.pages().find((one) => one.url() === 'about:blank') ?? (await context.newPage());
  await page.goto(`${server.origin}/`);
  await started(page);
  return page;
}

export async function started(page) {
  await page.waitForSelector('html[data-started]');
}

/** Replaces what the worker's script finds in its browser, before it runs. */
export async function patchWorker(context, code) {
  const assets = new URL('../dist/assets/', import.meta.url);
  const name = (await readdir(assets)).find((file) => /^worker-.*\.js$/.test(file));
  const script = await readFile(new URL(name, assets), 'utf8');
  await context.route(`**/${name}`, (route) => route.fulfill({ body: `${code}\n${script}`, contentType: 'text/javascript' }));
}

export async function show(page, panel) {
  await page.click(`nav [data-show=${panel}]`);
}

/** Types a model's address and asks for it. */
export async function choose(page, server, model) {
  await show(page, 'models');
  await page.getByLabel('A repository of the hub').fill(`${server.origin}/models/${model}`);
  await page.locator('#other').getByRole('button', { name: 'Download' }).click();
}

/** A model that is there and can be talked to. */
export async function loaded(page) {
  await page.locator('#composer-text:not([disabled])').waitFor();
}

/** Waits for a condition, by the clock: a software GPU that answers leaves the page few frames. */
export async function until(page, condition, argument) {
  await page.waitForFunction(condition, argument, { polling: 50 });
}

/** Asks, waits for the end of the answer, and gives its article. */
export async function ask(page, text) {
  const stats = await page.locator('#messages .stats').count();
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
  await page.locator('#messages .stats').nth(stats).waitFor();
  return page.locator('#messages article').last();
}

/** The model's messages as they were received, out of the browser's database. */
export async function conversations(page) {
  return page.evaluate(() => new Promise((resolve, reject) => {
    const opening = indexedDB.open('web-chat', 1);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const all = opening.result.transaction('conversations').objectStore('conversations').getAll();
      all.onsuccess = () => resolve(all.result);
    };
  }));
}

export async function noticeText(page, key) {
  const box = page.locator(`#notices [data-key=${key}]`);
  await box.waitFor();
  return box.innerText();
}
