// The chat panel: answers equal those of `chat-cli`; stop, edit, regenerate, history and settings work.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import {
  PATIENCE, ask, choose, conversations, inBrowser, loaded, noticeText, openPage, readAdapterCache, show, started, until, writeAdapterCache,
} from './browser.mjs';
import { DEMO, MODELS, nativeAnswer, tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const DIST = new URL('../dist/', import.meta.url).pathname;
const options = { timeout: 5 * PATIENCE };
// Longer than a page of the cache, which is reused as a whole.
const STORY = 'Tell me a long story about a fox, a river, and the bridge that nobody in the village wants to cross.';

let server;

before(async () => {
  await tinyModel();
  server = await serve({ '/': DIST, '/models/': `${MODELS}/` });
});
after(() => server.close());

async function lastMessages(page) {
  const all = await conversations(page);
  return all.sort((a, b) => b.changed - a.changed)[0].messages;
}

test('greedy answers equal those of chat-cli, in each turn', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 48 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    for (const prompt of ['What is the capital of France?', 'One, two, three,']) {
      const expected = await nativeAnswer(join(MODELS, 'tiny'), prompt, 48);
      await ask(page, prompt);
      const answer = (await lastMessages(page)).at(-1);
      assert.equal(answer.content, expected.text);
      assert.match(answer.stats, new RegExp(`^${expected.token_ids.length} tokens at .*/s · prompt of ${expected.prompt_token_ids.length} tokens (\\(\\d+ cached\\) )?at .*/s · first token after`));
      await page.getByRole('button', { name: 'New chat', exact: true }).click();
    }
    // With a system prompt.
    await show(page, 'settings');
    await page.getByLabel('System prompt').fill('Be brief.');
    const expected = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 48, { system: 'Be brief.' });
    await ask(page, 'Hello');
    assert.equal((await lastMessages(page)).at(-1).content, expected.text);
  });
});

test('the demo model answers as in chat-cli', { ...options, skip: !DEMO && 'no demo model' }, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 24 } }, async (page) => {
    await choose(page, server, DEMO.split('/').at(-1));
    await loaded(page);
    const prompt = 'What is the capital of France?';
    const expected = await nativeAnswer(DEMO, prompt, 24);
    await ask(page, prompt);
    const answer = (await lastMessages(page)).at(-1).content;
    assert.equal(answer, expected.text);
    assert.match(answer, /Paris/);
  });
});

test('answers are stopped, regenerated, edited and copied; conversations are started, stored, opened and deleted', options, async () => {
  const permissions = ['clipboard-read', 'clipboard-write'];
  await inBrowser(server, { permissions, settings: { temperature: 0, max_tokens: 900 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    const box = page.getByLabel('Message', { exact: true });
    // Act inside the page: a software GPU that generates leaves so few frames that a click from outside comes too late.
    const duringAnswer = (act) => page.evaluate((name) => {
      const timer = setInterval(() => {
        if (!(document.querySelector('article[aria-busy] .body')?.textContent.length > 30)) return;
        clearInterval(timer);
        if (name === 'click') document.querySelector('#stop').click();
        else document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
      }, 10);
    }, act);
    await duringAnswer('click');
    await box.fill(STORY);
    await page.keyboard.press('Enter');
    const stats = page.locator('#messages .stats');
    await stats.waitFor();
    assert.match(await stats.innerText(), /stopped/);
    const stopped = (await lastMessages(page)).at(-1).content;
    assert.ok(stopped.length > 30 && stopped.length < 2000, `${stopped.length} characters`);

    // Stop the regenerated answer by keyboard.
    await duringAnswer('Escape');
    await stats.evaluate((line) => { line.dataset.isOld = ''; });
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await page.locator('#messages .stats:not([data-is-old])').waitFor();
    assert.match(await stats.innerText(), /stopped/);
    const again = (await lastMessages(page)).at(-1).content;
    const common = Math.min(again.length, stopped.length, 30);
    assert.equal(again.slice(0, common), stopped.slice(0, common));
    assert.equal((await lastMessages(page)).length, 2);

    await show(page, 'settings');
    await page.getByLabel('Maximum tokens').fill('12');
    await ask(page, 'And then?');
    assert.match(await stats.last().innerText(), /^12 tokens .*cached.* cut off/);
    assert.equal((await lastMessages(page)).length, 4);

    // Edit the first question: canceling changes nothing, sending replaces the later messages.
    const edit = page.locator('article.user').first().getByRole('button', { name: 'Edit' });
    await edit.click();
    assert.equal(await box.inputValue(), STORY);
    await page.getByRole('button', { name: 'Cancel' }).click();
    assert.equal(await page.locator('article').count(), 4);
    assert.equal(await box.inputValue(), '');
    await edit.click();
    await box.fill('Hello');
    await page.getByRole('button', { name: 'Send' }).click();
    await until(page, () => document.querySelectorAll('article').length === 2 && document.querySelector('.stats'));
    const expected = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 12);
    assert.deepEqual((await lastMessages(page)).map(({ content }) => content), ['Hello', expected.text]);

    await page.locator('article.assistant').getByRole('button', { name: 'Copy' }).click();
    await until(page, (text) => navigator.clipboard.readText().then((copied) => copied === text), expected.text);

    await page.getByRole('button', { name: 'New chat', exact: true }).click();
    assert.equal(await page.locator('article').count(), 0);
    await ask(page, 'Another one');
    await page.reload();
    await started(page);
    await loaded(page);
    await show(page, 'history');
    const cards = page.locator('#conversations li');
    assert.equal(await cards.count(), 2);
    await cards.filter({ hasText: 'Hello' }).getByRole('button', { name: /^Open/ }).click();
    assert.match(await page.locator('#messages').innerText(), /Hello/);
    await show(page, 'history');
    await cards.filter({ hasText: 'Another one' }).getByRole('button', { name: /^Delete/ }).click();
    await until(page, () => document.querySelectorAll('#conversations li').length === 1);
    assert.equal((await conversations(page)).length, 1);
  });
});

test('settings are stored, sent with requests, and reset to the model’s defaults', options, async () => {
  await inBrowser(server, {}, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await show(page, 'settings');
    assert.ok(await page.getByLabel('Temperature').getAttribute('placeholder'), 'the model’s default is shown');
    await page.getByLabel('Seed').fill('7');
    await page.getByLabel('Temperature').fill('1.5');
    await page.getByLabel('Maximum tokens').fill('16');
    const first = await (await ask(page, 'Hello')).locator('.body').textContent();
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await until(page, () => document.querySelectorAll('.stats').length === 1);
    assert.equal(await page.locator('article.assistant .body').textContent(), first, 'the same seed gives the same answer');
    await page.getByLabel('Seed').fill('8');
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await until(page, () => document.querySelectorAll('.stats').length === 1);
    assert.notEqual(await page.locator('article.assistant .body').textContent(), first);
    await page.reload();
    await started(page);
    assert.equal(await page.getByLabel('Seed').inputValue(), '8');
    await show(page, 'settings');
    await page.getByRole('button', { name: /Reset to the model/ }).click();
    assert.equal(await page.getByLabel('Seed').inputValue(), '');
  });
});

test('a conversation longer than the context shows a notice', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 8, context: 64 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await page.getByLabel('Message', { exact: true }).fill('word '.repeat(200));
    await page.keyboard.press('Enter');
    assert.match(await noticeText(page, 'chat'), /too long[\s\S]*context has only 64[\s\S]*new conversation/);
  });
});

test('answers are rendered as Markdown, never as live HTML', options, async () => {
  const hostile = [
    '# Title', '', '**bold**, `code` and [a link](https://example.com/)', '', '| a | b |', '|---|---|', '| 1 | 2 |', '',
    '```html', '<script>window.hacked = 1</script>', '```', '', '<script>window.hacked = 2</script>',
    '<img src=x onerror="window.hacked = 3">', '![picture](https://example.com/spy.png)', '[bad](javascript:window.hacked=4)',
    '<a href="javascript:window.hacked=5">worse</a>', '<iframe srcdoc="<script>parent.hacked=6</script>"></iframe>',
    '<svg onload="window.hacked=7"><style>*{display:none}</style>', '- [x] done',
  ].join('\n');
  await inBrowser(server, {}, async (page, context) => {
    await page.evaluate((content) => new Promise((resolve) => {
      indexedDB.open('web-chat', 1).onsuccess = ({ target }) => {
        const store = target.result.transaction('conversations', 'readwrite').objectStore('conversations');
        const messages = [{ role: 'user', content: '<b>me</b>' }, { role: 'assistant', content }];
        store.put({ id: 'x', title: 'Hostile <i>title</i>', changed: Date.now(), messages }).onsuccess = resolve;
      };
    }), hostile);
    const requests = [];
    context.on('request', (request) => requests.push(request.url()));
    await page.reload();
    await started(page);
    await show(page, 'history');
    await page.getByRole('button', { name: /^Open: Hostile <i>/ }).click();
    const body = page.locator('article.assistant .body');
    assert.equal(await body.locator('h3').innerText(), 'Title');
    assert.equal(await body.locator('strong').innerText(), 'bold');
    assert.equal(await body.locator('td').count(), 2);
    assert.match(await body.locator('pre code').innerText(), /^<script>window.hacked = 1<\/script>/);
    assert.equal(await body.locator('script, img, iframe, svg, style, object, form').count(), 0);
    assert.deepEqual(await body.locator('a').evaluateAll((links) => links.map(({ href, rel }) => [href, rel])),
      [['https://example.com/', 'noopener noreferrer nofollow']]);
    assert.match(await body.innerText(), /<img src=x onerror/, 'tags are shown as text');
    assert.equal(await page.locator('article.user .plain').innerText(), '<b>me</b>');
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.deepEqual(requests.filter((url) => url.includes('example.com')), []);
  });
});

test('the GPU panel shows adapter, memory, and decode as a share of the bandwidth', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 16 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await ask(page, 'Hello');
    await show(page, 'device');
    const facts = page.locator('#device-facts');
    await facts.getByRole('button', { name: /^Measure/ }).click();
    await page.getByText(/GB\/s, reads plus writes/).waitFor();
    await facts.getByText('Limits and features').click();
    const text = await facts.innerText();
    assert.match(text, /Largest binding\s+\d/);
    assert.match(text, /Features\s+\S/);
    for (const pattern of [/Adapter\s+\S/, /f16 in shaders\s+(yes|no)/, /Subgroups\s+\S/,
      /weights\s+(?:0\.2 MB|\d+ kB)/i, /cache of 1024 tokens\s+\d/, /scratch\s+\d/, /share of the memory bandwidth\s+\d+ %/]) {
      assert.match(text, pattern);
    }
  });
});

test('the kernels’ self-test runs once per adapter, and its result is stored', options, async () => {
  await inBrowser(server, { isFirst: true, settings: { temperature: 0, max_tokens: 4 } }, async (page) => {
    const kernels = async () => {
      await loaded(page);
      await show(page, 'device');
      return page.locator('#device-facts').innerText();
    };
    await choose(page, server, 'tiny');
    assert.match(await kernels(), /Self-test of the kernels\s+\d{2,} cases in [\d.]+ s/);
    await page.reload();
    await started(page);
    assert.match(await kernels(), /Self-test of the kernels\s+done earlier/);
    // The result of another adapter or browser does not count.
    await writeAdapterCache(page, (await readAdapterCache(page)).replace('"about":"', '"about":"x'));
    await page.reload();
    await started(page);
    assert.match(await kernels(), /cases in/);
  });
});

test('two pages of one browser share stored models', options, async () => {
  await inBrowser(server, {}, async (page, context) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await page.close();
    server.requests.length = 0;
    const next = await openPage(context, server);
    await loaded(next);
    assert.equal(server.requests.filter(({ path }) => path.startsWith('/models/')).length, 0);
  });
});
