// Downloads to the browser's storage: pausing, resuming, network errors, damaged files, full storage, several tabs.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { PATIENCE, ask, choose, inBrowser, loaded, noticeText, show, started, until } from './browser.mjs';
import { MODELS, shardedModel, tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const DIST = new URL('../dist/', import.meta.url).pathname;
const SETTINGS = { temperature: 0, max_tokens: 4 };
const options = { timeout: 4 * PATIENCE };
let server;
let shards;

before(async () => {
  await tinyModel();
  const folder = await shardedModel();
  shards = (await readdir(folder)).filter((name) => name.endsWith('.bin')).sort();
  assert.ok(shards.length >= 4, `the model has ${shards.length} shards`);
  server = await serve({ '/': DIST, '/models/': `${MODELS}/` });
});
after(() => server.close());

function requested(name) {
  return server.requests.filter(({ path }) => path.endsWith(`/${name}`));
}

/** Compares the stored shards with the server's. */
async function assertStored(page, from, model) {
  const folder = join(MODELS, model);
  for (const name of shards) {
    const expected = await readFile(join(folder, name));
    const stored = await page.evaluate(async ([id, file]) => {
      const models = await (await navigator.storage.getDirectory()).getDirectoryHandle('models');
      const bytes = await (await (await (await models.getDirectoryHandle(encodeURIComponent(id))).getFileHandle(file)).getFile()).arrayBuffer();
      const hash = await crypto.subtle.digest('SHA-256', bytes);
      return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    }, [`${from.origin}/models/${model}`, name]);
    assert.equal(stored, createHash('sha256').update(expected).digest('hex'), name);
  }
}

test('a model is downloaded, stored, loaded again without a server, and deleted', options, async () => {
  const server = await serve({ '/': DIST, '/models/': `${MODELS}/` });
  await inBrowser(server, { settings: SETTINGS }, async (page) => {
    assert.match(await page.locator('#storage').innerText(), /used, .* free for this page/);
    await choose(page, server, 'sharded');
    await loaded(page);
    await assertStored(page, server, 'sharded');
    const first = await (await ask(page, 'Hello')).locator('.body').innerText();

    // Page and model load without the server.
    await page.evaluate(() => navigator.serviceWorker.ready);
    server.close();
    await page.reload();
    await started(page);
    await loaded(page);
    const again = await (await ask(page, 'Hello')).locator('.body').innerText();
    assert.equal(again, first);

    await show(page, 'models');
    const card = page.locator('#stored li');
    assert.match(await card.innerText(), /MB, loaded/);
    await card.getByRole('button', { name: /^Delete/ }).click();
    await page.getByText('No models yet.').waitFor();
    assert.match(await page.locator('#model-state').innerText(), /No model/);
    assert.ok(await page.locator('#composer-text').isDisabled());
    const left = await page.evaluate(async () => {
      const models = await (await navigator.storage.getDirectory()).getDirectoryHandle('models');
      return Array.fromAsync(models.keys());
    });
    assert.deepEqual(left, []);
  });
});

test('a paused download resumes after the page was reloaded', options, async () => {
  await inBrowser(server, {}, async (page) => {
    server.faults.bytesPerSecond = 400_000;
    await choose(page, server, 'sharded');
    await until(page, () => document.querySelector('#transfer-bar').value > 0.1);
    assert.match(await page.locator('#transfer-text').innerText(), /Downloading .* of .* MB, .* [kM]B\/s, .* left/);
    await page.getByRole('button', { name: 'Pause' }).click();
    assert.match(await noticeText(page, 'models'), /paused/);
    const card = page.locator('#stored li');
    await card.filter({ hasText: / of / }).waitFor();

    await page.reload();
    await started(page);
    delete server.faults.bytesPerSecond;
    server.requests.length = 0;
    await card.getByRole('button', { name: /^Resume/ }).click();
    await loaded(page);
    assert.ok(server.requests.some(({ range }) => range), 'no request had a range');
    await assertStored(page, server, 'sharded');
  });
});

test('a server without range requests sends the whole file again', options, async () => {
  await inBrowser(server, {}, async (page) => {
    server.faults.bytesPerSecond = 400_000;
    await choose(page, server, 'sharded');
    await until(page, () => document.querySelector('#transfer-bar').value > 0.1);
    await page.getByRole('button', { name: 'Pause' }).click();
    delete server.faults.bytesPerSecond;
    server.faults.refuseRanges = true;
    await page.locator('#notices').getByRole('button', { name: 'Resume' }).click();
    await loaded(page);
    delete server.faults.refuseRanges;
    await assertStored(page, server, 'sharded');
  });
});

test('a broken connection is resumed', options, async () => {
  // The browser also logs the error in its console.
  await inBrowser(server, { expects: [/net::ERR/] }, async (page) => {
    server.faults.break = shards[1];
    server.requests.length = 0;
    await choose(page, server, 'sharded');
    await loaded(page);
    assert.equal(requested(shards[1]).length, 2);
    assert.match(requested(shards[1])[1].range, /^bytes=[1-9]/);
    await assertStored(page, server, 'sharded');
  });
});

test('a download continues when the network is back', options, async () => {
  await inBrowser(server, { expects: [/net::ERR/] }, async (page, context) => {
    server.faults.bytesPerSecond = 400_000;
    await choose(page, server, 'sharded');
    await until(page, () => document.querySelector('#transfer-bar').value > 0.1);
    await context.setOffline(true);
    server.closeConnections();
    const text = await noticeText(page, 'models');
    assert.match(text, /The network failed/);
    assert.match(text, /the downloaded part is stored/);
    await context.setOffline(false);
    delete server.faults.bytesPerSecond;
    await page.locator('#notices').getByRole('button', { name: 'Try again' }).click();
    await loaded(page);
    await assertStored(page, server, 'sharded');
  });
});

test('a damaged shard is downloaded again', options, async () => {
  await inBrowser(server, {}, async (page) => {
    server.faults.damage = { name: shards[2], times: 1 };
    server.requests.length = 0;
    await choose(page, server, 'sharded');
    await loaded(page);
    assert.equal(requested(shards[2]).length, 2);
    await assertStored(page, server, 'sharded');
  });
});

test('a shard that is damaged twice is named and not stored as complete', options, async () => {
  await inBrowser(server, {}, async (page) => {
    server.faults.damage = { name: shards[2], times: 2 };
    await choose(page, server, 'sharded');
    const text = await noticeText(page, 'models');
    assert.match(text, /damaged/);
    assert.ok(text.includes(shards[2]), text);
    assert.match(text, /checksum [0-9a-f]{32}, expected [0-9a-f]{32}/);
    await page.locator('#stored li').filter({ hasText: / of / }).waitFor();
    assert.ok(await page.locator('#composer-text').isDisabled());
    // The server's copy is repaired. The next attempt succeeds.
    delete server.faults.damage;
    server.requests.length = 0;
    await page.locator('#notices').getByRole('button', { name: 'Try again' }).click();
    await loaded(page);
    await assertStored(page, server, 'sharded');
  });
});

test('addresses without a model are rejected', options, async () => {
  const cases = [
    ['/models/nothing', /model was not found[\s\S]*mlc-chat-config\.json[\s\S]*MLC format/],
    ['not a name', /neither a repository .* nor an https address/],
    ['http://example.com/model', /neither a repository .* nor an https address/],
  ];
  await inBrowser(server, { expects: [/404/] }, async (page) => {
    for (const [name, pattern] of cases) {
      await page.getByLabel('Repository in MLC format').fill(name.startsWith('/') ? server.origin + name : name);
      await page.locator('#other').getByRole('button', { name: 'Download' }).click();
      assert.match(await noticeText(page, 'models'), pattern);
      await page.locator('#notices').getByRole('button', { name: 'Dismiss' }).click();
    }
    await page.reload();
    await started(page);
    assert.equal(await page.locator('#stored').innerText(), 'No models yet.');
  });
});

test('too little storage is reported before the download', options, async () => {
  await inBrowser(server, {}, async (page) => {
    await page.evaluate(() => { navigator.storage.estimate = async () => ({ usage: 5e6, quota: 7e6 }); });
    server.requests.length = 0;
    await choose(page, server, 'sharded');
    assert.match(await noticeText(page, 'models'), /storage is full[\s\S]*needs .* more, and the browser has/);
    assert.equal(server.requests.filter(({ path }) => path.endsWith('.bin')).length, 0);
  });
});

test('a download resumes after the storage was full', options, async () => {
  await inBrowser(server, {}, async (page, context) => {
    const devtools = await context.newCDPSession(page);
    server.faults.bytesPerSecond = 400_000;
    await choose(page, server, 'sharded');
    await until(page, () => document.querySelector('#transfer-bar').value > 0.1);
    await devtools.send('Storage.overrideQuotaForOrigin', { origin: server.origin, quotaSize: 2.5e6 });
    const text = await noticeText(page, 'models');
    assert.match(text, /storage is full/);
    assert.match(text, /delete a stored model/);
    delete server.faults.bytesPerSecond;
    await devtools.send('Storage.overrideQuotaForOrigin', { origin: server.origin });
    await page.locator('#notices').getByRole('button', { name: 'Try again' }).click();
    await loaded(page);
    await assertStored(page, server, 'sharded');
  });
});

test('a second tab does not disturb a download, and loads the model only on request', options, async () => {
  await inBrowser(server, {}, async (page, context) => {
    server.faults.bytesPerSecond = 400_000;
    await choose(page, server, 'sharded');
    await until(page, () => document.querySelector('#transfer-bar').value > 0.1);
    const second = await context.newPage();
    await second.goto(`${server.origin}/`);
    await started(second);
    await choose(second, server, 'sharded');
    assert.match(await noticeText(second, 'models'), /Another tab[\s\S]*is downloading/);
    delete server.faults.bytesPerSecond;
    await loaded(page);
    await second.reload();
    await started(second);
    assert.match(await noticeText(second, 'models'), /Another tab[\s\S]*has a model loaded/);
    await second.locator('#notices').getByRole('button', { name: 'Load here too' }).click();
    await loaded(second);
    await page.close();
    await assertStored(second, server, 'sharded');
  });
});

test('a local folder is read in place, chosen or dropped', options, async () => {
  await inBrowser(server, { settings: SETTINGS }, async (page, context) => {
    server.requests.length = 0;
    await page.getByLabel('Local folder in MLC format').setInputFiles(join(MODELS, 'tiny'));
    await loaded(page);
    await ask(page, 'Hello');

    await show(page, 'models');
    const devtools = await context.newCDPSession(page);
    const data = { items: [], files: [join(MODELS, 'sharded')], dragOperationsMask: 1 };
    for (const type of ['dragEnter', 'dragOver', 'drop']) {
      await devtools.send('Input.dispatchDragEvent', { type, x: 600, y: 300, data });
    }
    await until(page, () => document.querySelector('#model-state').textContent === 'sharded');
    await loaded(page);
    await ask(page, 'Hello');
    assert.equal(server.requests.filter(({ path }) => path.startsWith('/models/')).length, 0);
    await show(page, 'models');
    assert.equal(await page.locator('#stored').innerText(), 'No models yet.');
  });
});
