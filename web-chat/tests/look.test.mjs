// Layout and accessibility: screenshots in several looks, axe's rules, operation by keyboard, announcements for screen readers.

import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { PATIENCE, ask, choose, inBrowser, loaded, noticeText, show, started, until } from './browser.mjs';
import { DEMO, MODELS, OUTPUT, tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const DIST = new URL('../dist/', import.meta.url).pathname;
const SCREENSHOTS = join(OUTPUT, 'screenshots');
const options = { timeout: 6 * PATIENCE };
const LOOKS = {
  wide: { viewport: { width: 1280, height: 800 } },
  narrow: { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true },
};
const PANELS = ['chat', 'models', 'history', 'settings', 'device'];
let server;
let axe;

before(async () => {
  await tinyModel();
  await mkdir(SCREENSHOTS, { recursive: true });
  axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
  server = await serve({ '/': DIST, '/models/': `${MODELS}/` });
});
after(() => server.close());

/** Takes screenshots in light and dark, checks both with axe, and checks that nothing is wider than the window. */
async function lookAt(page, look, part) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: join(SCREENSHOTS, `${look}-${part}${colorScheme === 'dark' ? '-dark' : ''}.png`) });
    assert.deepEqual(await findings(page), [], `${look} ${part} ${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: 'light' });
  const [scrollWidth, clientWidth] = await widths(page);
  assert.ok(scrollWidth <= clientWidth, `${part}: ${scrollWidth} wide in ${clientWidth}`);
}

/** All findings of axe, of every severity. */
async function findings(page) {
  // Evaluate it: the page's policy does not allow a script element.
  await page.evaluate(axe);
  return page.evaluate(async () => (await globalThis.axe.run()).violations.map(({ id, impact, nodes }) => (
    `${impact} ${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join('; ')}`)));
}

async function widths(page) {
  return page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
}

for (const [look, context] of Object.entries(LOOKS)) {
  test(`${look}: nothing is cut off, and axe has no findings`, options, async () => {
    await inBrowser(server, { ...context, settings: { temperature: 0, max_tokens: 40 } }, async (page) => {
      await lookAt(page, look, 'first');
      server.faults.bytesPerSecond = 60_000;
      await choose(page, server, 'tiny');
      await until(page, () => document.querySelector('#transfer-bar').value > 0.2);
      await lookAt(page, look, 'download');
      delete server.faults.bytesPerSecond;
      await loaded(page);
      if (DEMO && look === 'wide') {
        // Use real sentences in the screenshots. Only once, because a software GPU needs ten seconds.
        await choose(page, server, DEMO.split('/').at(-1));
        await until(page, () => document.querySelector('#model-state').textContent.includes('SmolLM2'));
      }
      if (look === 'narrow') await show(page, 'chat');
      await ask(page, 'List three primary colors in Markdown.');
      for (const panel of PANELS) {
        if (panel === 'chat' && look !== 'narrow') continue;
        await show(page, panel);
        await lookAt(page, look, panel);
      }
    });
  });
}

const ANSWER = [
  '## A heading', '', 'Some **bold** text with `code` in it, and a [link](https://example.com/).', '', '```rust',
  'fn main() { println!("{}", "a line that is far longer than a telephone is wide, and does not break"); }', '```', '',
  '| format | bits | bytes of a matrix of 4096 by 4096 | perplexity |', '|---|---|---|---|', '| q4f16_1 | 4.5 | 9437184 | 20.60 |', '',
  '1. first', '2. second', '', '> a quotation', '', `A word without end: ${'endless'.repeat(12)}`,
].join('\n');

for (const [look, context] of Object.entries(LOOKS)) {
  test(`${look}: code, tables, very long words and errors fit`, options, async () => {
    await inBrowser(server, { ...context, expects: [/404/] }, async (page) => {
      await page.evaluate((content) => new Promise((resolve) => {
        indexedDB.open('web-chat', 1).onsuccess = ({ target }) => {
          const store = target.result.transaction('conversations', 'readwrite').objectStore('conversations');
          const messages = [{ role: 'user', content: 'Show me all kinds of content.' }, { role: 'assistant', content }];
          store.put({ id: 'x', title: 'Everything '.repeat(9), changed: Date.now(), messages }).onsuccess = resolve;
        };
      }), ANSWER);
      await page.reload();
      await started(page);
      await show(page, 'models');
      await page.getByLabel('Repository in MLC format').fill(`${server.origin}/models/${'a-model-with-a-name-without-end-'.repeat(4)}`);
      await page.locator('#other').getByRole('button', { name: 'Download' }).click();
      await noticeText(page, 'models');
      await lookAt(page, look, 'error');
      await page.locator('#notices').getByRole('button', { name: 'Dismiss' }).click();
      await show(page, 'history');
      await page.getByRole('button', { name: /^Open: Everything/ }).click();
      await lookAt(page, look, 'markdown');
    });
  });
}

test('the page works by keyboard, and announces answers', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 12 } }, async (page) => {
    const focused = () => page.evaluate(() => {
      const { activeElement: element } = document;
      return element.id || element.textContent.trim();
    });
    const tabTo = async (name) => {
      const seen = [];
      for (let presses = 0; presses < 60; presses++) {
        await page.keyboard.press('Tab');
        seen.push(await focused());
        if (seen.at(-1) === name) return;
      }
      assert.fail(`${name} is not reached: ${seen}`);
    };
    await tabTo('Skip to the message box');
    await tabTo('Settings');
    await page.keyboard.press('Enter');
    assert.equal(await focused(), 'settings-title');
    await tabTo('system');
    await page.locator('nav [data-show=models]').press('Enter');
    await tabTo('other-name');
    await page.keyboard.type(`${server.origin}/models/tiny`);
    await page.keyboard.press('Enter');
    await loaded(page);
    // The message box has the focus.
    assert.equal(await focused(), 'composer-text');
    await page.keyboard.type('Hello');
    await page.keyboard.press('Enter');
    await page.locator('#messages .stats').waitFor();
    assert.equal(await focused(), 'composer-text');
    // One announcement per answer, not one per token.
    const announced = await page.getByRole('status').filter({ hasNotText: 'tiny' }).textContent();
    const answer = await page.locator('article.assistant .body').textContent();
    assert.ok(announced.length > 0 && answer.includes(announced.trim().slice(0, 3)), `${announced} / ${answer}`);
    assert.equal(await page.locator('#messages').getAttribute('aria-live'), 'off');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('a');
    assert.equal(await page.locator('#composer-text').inputValue(), '\na');
  });
});

test('large type and reduced motion: nothing is cut off', options, async () => {
  await inBrowser(server, { viewport: { width: 640, height: 400 }, reducedMotion: 'reduce' }, async (page) => {
    await page.evaluate(() => { document.documentElement.style.fontSize = '200%'; });
    for (const panel of PANELS) {
      await show(page, panel);
      const [scrollWidth, clientWidth] = await widths(page);
      assert.ok(scrollWidth <= clientWidth, `${panel}: ${scrollWidth} wide in ${clientWidth}`);
    }
    assert.deepEqual(await findings(page), []);
  });
});
