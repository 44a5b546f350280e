// Starts Chromium with WebGPU on its software adapter, and operates the page in it.

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

/** Time limit of a single action, in milliseconds, generous enough for two slow cores. */
export const PATIENCE = 60_000;

/** Starts a browser with a temporary profile. */
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

/** The engine's file with the results of the kernels' self-test. Tests share it, because a software GPU needs seconds for the test. */
const ADAPTER_CACHE = 'adapter.json';
const SHARED_ADAPTER_CACHE = join(OUTPUT, ADAPTER_CACHE);

export async function writeAdapterCache(page, text) {
  await page.evaluate(async ([name, content]) => {
    const file = await (await navigator.storage.getDirectory()).getFileHandle(name, { create: true });
    const stream = await file.createWritable();
    await stream.write(content);
    await stream.close();
  }, [ADAPTER_CACHE, text]);
}

export async function readAdapterCache(page) {
  return page.evaluate(async (name) => {
    const file = await (await navigator.storage.getDirectory()).getFileHandle(name);
    return (await file.getFile()).text();
  }, ADAPTER_CACHE);
}

/** Gives a browser the adapter cache of earlier tests, if there is one. */
export async function shareAdapterCache(page) {
  const cache = await readFile(SHARED_ADAPTER_CACHE, 'utf8').catch(() => undefined);
  if (cache) await writeAdapterCache(page, cache);
}

/**
 * Runs a test in its own browser. Errors in the console fail the test, except those that match `expects`. `settings` are the
 * page's settings. `isFirst` starts without the adapter cache.
 */
export async function inBrowser(server, options, test) {
  const { expects = [], settings, isFirst = false, ...launchOptions } = options;
  const browser = await launch(launchOptions);
  const errors = [];
  browser.context.on('weberror', (error) => errors.push(String(error.error())));
  browser.context.on('console', (message) => {
    if (message.type() === 'error') errors.push(message.text());
  });
  if (settings) await browser.context.addInitScript((text) => localStorage.setItem('settings', text), JSON.stringify(settings));
  try {
    const page = await openPage(browser.context, server);
    if (!isFirst) await shareAdapterCache(page);
    await test(page, browser.context);
    const cache = page.isClosed() ? undefined : await readAdapterCache(page).catch(() => undefined);
    if (cache) await writeFile(SHARED_ADAPTER_CACHE, cache);
    const unexpected = errors.filter((error) => !expects.some((pattern) => pattern.test(error)));
    assert.deepEqual(unexpected, [], 'errors in the console');
  } finally {
    await browser.close();
  }
}

/** Opens the page and waits until it has read the storage and opened the device. */
export async function openPage(context, server) {
  const page = context.pages().find((one) => one.url() === 'about:blank') ?? (await context.newPage());
  await page.goto(`${server.origin}/`);
  await started(page);
  return page;
}

export async function started(page) {
  await page.waitForSelector('html[data-started]');
}

/** Runs `code` in the worker before its script. */
export async function patchWorker(context, code) {
  const assets = new URL('../dist/assets/', import.meta.url);
  const name = (await readdir(assets)).find((file) => /^worker-.*\.js$/.test(file));
  const script = await readFile(new URL(name, assets), 'utf8');
  await context.route(`**/${name}`, (route) => route.fulfill({ body: `${code}\n${script}`, contentType: 'text/javascript' }));
}

export async function show(page, panel) {
  await page.click(`nav [data-show=${panel}]`);
}

/** Enters a model's address and starts its download. */
export async function choose(page, server, model) {
  await show(page, 'models');
  await page.getByLabel('Repository in MLC format').fill(`${server.origin}/models/${model}`);
  await page.locator('#other').getByRole('button', { name: 'Download' }).click();
}

/** Waits until a model is loaded. */
export async function loaded(page) {
  await page.locator('#composer-text:not([disabled])').waitFor();
}

/** Waits for a condition. It polls by time, because a software GPU that generates leaves the page few frames. */
export async function until(page, condition, argument) {
  await page.waitForFunction(condition, argument, { polling: 50 });
}

/** Sends a message, waits for the end of the answer, and returns its article. */
export async function ask(page, text) {
  const stats = await page.locator('#messages .stats').count();
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
  await page.locator('#messages .stats').nth(stats).waitFor();
  return page.locator('#messages article').last();
}

/** The stored conversations, from the browser's database. */
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
