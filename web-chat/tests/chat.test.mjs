// The conversation: what the model says, and what can be done with it.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import {
  PATIENCE, ask, choose, conversations, inBrowser, loaded, noticeText, openPage, readNotes, show, started, until, writeNotes,
} from './browser.mjs';
import { DEMO, MODELS, nativeAnswer, tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const DIST = new URL('../dist/', import.meta.url).pathname;
const options = { timeout: 5 * PATIENCE };
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

test('greedy text is the native engine’s, turn after turn', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 48 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    for (const prompt of ['What is the capital of France?', 'One, two, three,']) {
      const expected = await nativeAnswer(join(MODELS, 'tiny'), prompt, 48);
      await ask(page, prompt);
      const said = (await lastMessages(page)).at(-1);
      assert.equal(said.content, expected.text);
      assert.match(said.stats, new RegExp(`^${expected.token_ids.length} tokens at .*/s · prompt ${expected.prompt_token_ids.length} (\\(\\d+ remembered\\) )?at .*/s · first token after`));
      await page.getByRole('button', { name: 'New', exact: true }).click();
    }
    // With a system prompt.
    await show(page, 'settings');
    await page.getByLabel('System prompt').fill('Be brief.');
    const expected = await nativeAnswer(join(MODELS, 'tiny'), 'Hello', 48, { system: 'Be brief.' });
    await ask(page, 'Hello');
    assert.equal((await lastMessages(page)).at(-1).content, expected.text);
  });
});

test('the demo model answers as the native engine does', { ...options, skip: !DEMO && 'the demo model could not be had' }, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 24 } }, async (page) => {
    await choose(page, server, DEMO.split('/').at(-1));
    await loaded(page);
    const prompt = 'What is the capital of France?';
    const expected = await nativeAnswer(DEMO, prompt, 24);
    await ask(page, prompt);
    const said = (await lastMessages(page)).at(-1).content;
    assert.equal(said, expected.text);
    assert.match(said, /Paris/);
  });
});

test('an answer is stopped, regenerated, edited, copied; a conversation is reset, kept, opened and deleted', options, async () => {
  const permissions = ['clipboard-read', 'clipboard-write'];
  await inBrowser(server, { permissions, settings: { temperature: 0, max_tokens: 900 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    const box = page.getByLabel('Message', { exact: true });
    // From within: a software GPU that answers leaves the page so few frames that a click from outside comes late.
    const whenItTalks = (act) => page.evaluate((name) => {
      const timer = setInterval(() => {
        if (!(document.querySelector('article[aria-busy] .body')?.textContent.length > 30)) return;
        clearInterval(timer);
        if (name === 'click') document.querySelector('#stop').click();
        else document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
      }, 10);
    }, act);
    await whenItTalks('click');
    await box.fill('Tell me a long story.');
    await page.keyboard.press('Enter');
    const stats = page.locator('#messages .stats');
    await stats.waitFor();
    assert.match(await stats.innerText(), /stopped/);
    const stopped = (await lastMessages(page)).at(-1).content;
    assert.ok(stopped.length > 30 && stopped.length < 2000, `${stopped.length} characters`);

    // Stopping by the keyboard, in the answer that is made instead.
    await whenItTalks('Escape');
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await until(page, () => document.querySelector('article[aria-busy]'));
    await stats.waitFor();
    assert.match(await stats.innerText(), /stopped/);
    const again = (await lastMessages(page)).at(-1).content;
    const common = Math.min(again.length, stopped.length, 30);
    assert.equal(again.slice(0, common), stopped.slice(0, common));
    assert.equal((await lastMessages(page)).length, 2);

    await show(page, 'settings');
    await page.getByLabel('Longest answer, in tokens').fill('12');
    await ask(page, 'And then?');
    assert.match(await stats.last().innerText(), /^12 tokens .*remembered.* cut off/);
    assert.equal((await lastMessages(page)).length, 4);

    // Editing the first question: leaving it changes nothing, sending it replaces what came after.
    const edit = page.locator('article.user').first().getByRole('button', { name: 'Edit' });
    await edit.click();
    assert.equal(await box.inputValue(), 'Tell me a long story.');
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

    await page.getByRole('button', { name: 'New', exact: true }).click();
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

test('settings are kept, sent, and given back to the model’s own', options, async () => {
  await inBrowser(server, {}, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await show(page, 'settings');
    assert.ok(await page.getByLabel('Temperature').getAttribute('placeholder'), 'what the model recommends is shown');
    await page.getByLabel('Seed').fill('7');
    await page.getByLabel('Temperature').fill('1.5');
    await page.getByLabel('Longest answer').fill('16');
    const first = await (await ask(page, 'Hello')).locator('.body').textContent();
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await until(page, () => document.querySelectorAll('.stats').length === 1);
    assert.equal(await page.locator('article.assistant .body').textContent(), first, 'one seed, one answer');
    await page.getByLabel('Seed').fill('8');
    await page.getByRole('button', { name: 'Regenerate' }).click();
    await until(page, () => document.querySelectorAll('.stats').length === 1);
    assert.notEqual(await page.locator('article.assistant .body').textContent(), first);
    await page.reload();
    await started(page);
    assert.equal(await page.getByLabel('Seed').inputValue(), '8');
    await show(page, 'settings');
    await page.getByRole('button', { name: /Back to the model/ }).click();
    assert.equal(await page.getByLabel('Seed').inputValue(), '');
  });
});

test('a conversation that outgrows the context says so', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 8, context: 64 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await page.getByLabel('Message', { exact: true }).fill('word '.repeat(200));
    await page.keyboard.press('Enter');
    assert.match(await noticeText(page, 'chat'), /too long[\s\S]*room for 64[\s\S]*new conversation/);
  });
});

test('what a model writes is Markdown and never live HTML', options, async () => {
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
    const asked = [];
    context.on('request', (request) => asked.push(request.url()));
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
    assert.deepEqual(asked.filter((url) => url.includes('example.com')), []);
  });
});

test('the GPU panel says what there is and how far decoding is from it', options, async () => {
  await inBrowser(server, { settings: { temperature: 0, max_tokens: 16 } }, async (page) => {
    await choose(page, server, 'tiny');
    await loaded(page);
    await ask(page, 'Hello');
    await show(page, 'device');
    const facts = page.locator('#device-facts');
    await facts.getByRole('button', { name: /^Measure/ }).click();
    await page.getByText(/GB\/s, read and written together/).waitFor();
    await facts.getByText('Limits and features').click();
    const text = await facts.innerText();
    assert.match(text, /Largest binding\s+\d/);
    assert.match(text, /Features\s+\S/);
    for (const pattern of [/Adapter\s+\S/, /f16 in shaders\s+(yes|no)/, /Subgroups\s+\S/,
      /weights\s+(?:0\.2 MB|\d+ kB)/i, /cache of 1024 tokens\s+\d/, /scratch\s+\d/, /of what the memory could do\s+\d+ %/]) {
      assert.match(text, pattern);
    }
  });
});

test('kernels are checked once on an adapter, and what came out is kept', options, async () => {
  await inBrowser(server, { isFirst: true, settings: { temperature: 0, max_tokens: 4 } }, async (page) => {
    const kernels = async () => {
      await loaded(page);
      await show(page, 'device');
      return page.locator('#device-facts').innerText();
    };
    await choose(page, server, 'tiny');
    assert.match(await kernels(), /Kernels against their references\s+\d{2,} checked in [\d.]+ s/);
    await page.reload();
    await started(page);
    assert.match(await kernels(), /Kernels against their references\s+checked before/);
    // Notes of another adapter or another browser are none of this one's.
    await writeNotes(page, (await readNotes(page)).replace('"about":"', '"about":"x'));
    await page.reload();
    await started(page);
    assert.match(await kernels(), /checked in/);
  });
});

test('two pages of one browser share what is kept', options, async () => {
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
