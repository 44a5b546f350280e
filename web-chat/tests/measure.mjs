// Measures the figures of docs/laboratory/browser.md: `node web-chat/tests/measure.mjs [--dawn] MODEL...`. A MODEL is an MLC
// folder, or the name of a shape below, which gets random weights. Needs the output of `cargo xtask web --build`, and chat-cli.
// Set `VK_DRIVER_FILES` so that chat-cli uses the browser's driver. `--dawn` measures in Dawn without a browser: `dawn.mjs`.

import { readFile, readdir, symlink, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { brotliCompressSync, gzipSync } from 'node:zlib';
import { launch, loaded, started } from './browser.mjs';
import { convertOnce, nativeAnswer, randomCheckpoint } from './models.mjs';
import { serve } from './server.mjs';

const WEB_CHAT = fileURLToPath(new URL('../', import.meta.url));
const PROMPT = 'Tell me about the history of France.';
/** Shapes of published models: SmolLM2-1.7B (1 GB) and Llama-3.2-1B. */
const SHAPES = {
  'random-1gb': {
    hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 24, num_attention_heads: 32, num_key_value_heads: 32, head_dim: 64,
    vocab_size: 49152,
  },
  'random-llama-1b': {
    hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 16, num_attention_heads: 32, num_key_value_heads: 8, head_dim: 64,
    vocab_size: 128256,
  },
};

/** Prints the size of the page, raw and compressed. */
async function printPageSize() {
  const names = (await readdir(join(WEB_CHAT, 'dist'), { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  const files = await Promise.all(names.map((entry) => readFile(join(entry.parentPath, entry.name))));
  const sum = (size) => files.reduce((all, file) => all + size(file), 0);
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`;
  console.log(`page: ${megabytes(sum((file) => file.length))}, gzip ${megabytes(sum((file) => gzipSync(file, { level: 9 }).length))}, `
    + `brotli ${megabytes(sum((file) => brotliCompressSync(file).length))}`);
}

/** Measures page loading, and loads the model by the package in Chromium. */
async function inChromium(folder) {
  const name = basename(folder);
  const models = await mkdtemp(join(tmpdir(), 'web-chat-models-'));
  await symlink(resolve(folder), join(models, name));
  const server = await serve({ '/': join(WEB_CHAT, 'dist/'), '/package/': join(WEB_CHAT, 'package/'), '/models/': `${models}/` });
  const { context, close } = await launch({ args: process.env.CHROMIUM_FLAGS?.split(' ') ?? [] });
  context.setDefaultTimeout(600_000);
  const page = await context.newPage();
  await page.goto(`${server.origin}/`);
  await started(page);
  await page.fill('#other-name', `${server.origin}/models/${name}`);
  const begin = Date.now();
  await page.click('#other button');
  await loaded(page);
  console.log(`  downloaded from this machine, checked and loaded: ${((Date.now() - begin) / 1000).toFixed(1)} s`);
  await page.evaluate(() => navigator.serviceWorker.ready);
  const times = [];
  for (let i = 0; i < 5; i++) {
    await page.reload();
    await page.waitForSelector('html[data-ready]');
    times.push(Number(await page.locator('html').getAttribute('data-ready')));
  }
  times.sort((a, b) => a - b);
  console.log(`  cached page to usable chat box: ${times[2]} ms (${times[0]} to ${times[4]})`);
  await page.goto('about:blank');

  const bench = await context.newPage();
  await bench.goto(`${server.origin}/icon.svg`);
  const adapter = await bench.evaluate(async (model) => {
    const { createEngine } = await import('/package/index.js');
    globalThis.engine = await createEngine(model);
    const { vendor, architecture, description, f16, subgroups } = await globalThis.engine.device();
    return { vendor, architecture, description, f16, subgroups };
  }, `${server.origin}/models/${name}`);
  return {
    adapter,
    info: () => bench.evaluate(() => globalThis.engine.loaded()),
    answer: (prompt, tokens) => bench.evaluate(async ([content, max_tokens]) => {
      await globalThis.engine.resetChat();
      const { choices, usage } = await globalThis.engine.chat.completions.create({ messages: [{ role: 'user', content }], temperature: 0, max_tokens });
      return { text: choices[0].message.content, ...usage.extra };
    }, [prompt, tokens]),
    async close() {
      await close();
      server.close();
      await rm(models, { recursive: true });
    },
  };
}

async function measure(open, folder, tokens) {
  console.log(`\n${basename(folder)}`);
  const engine = await open(folder);
  const loading = await engine.info();
  // Alternate, so that other load on the machine affects both.
  const browser = [];
  const native = [];
  const texts = new Set();
  let device;
  for (let round = 0; round < 3; round++) {
    browser.push(await engine.answer(PROMPT, tokens));
    const answer = await nativeAnswer(folder, PROMPT, tokens);
    native.push(answer.stats);
    texts.add(browser.at(-1).text).add(answer.text);
    device = answer.device;
  }
  const { heapBytes } = await engine.info();
  await engine.close();
  const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  console.log(`  adapter ${JSON.stringify(engine.adapter)}; terminal ${device}`);
  console.log(`  weights ${(loading.weightBytes / 1e6).toFixed(0)} MB; wasm memory: after loading ${mebibytes(loading.heapBytes)}, `
    + `after answers ${mebibytes(heapBytes)}`);
  console.log(`  greedy, ${tokens} tokens: browser and terminal ${texts.size === 1 ? 'equal' : 'DIFFER'}`);
  const best = (rounds, field) => Math.max(...rounds.map((round) => round[field]));
  for (const field of ['prefill_tokens_per_s', 'decode_tokens_per_s']) {
    const [here, there] = [best(browser, field), best(native, field)];
    console.log(`  ${field}: browser ${here.toFixed(2)}, terminal ${there.toFixed(2)}: ${((100 * here) / there).toFixed(0)} %`);
  }
}

const { values, positionals } = parseArgs({ options: { dawn: { type: 'boolean' }, tokens: { type: 'string', default: '64' } }, allowPositionals: true });
if (!values.dawn) await printPageSize();
const open = values.dawn ? (await import('./dawn.mjs')).inDawn : inChromium;
for (const model of positionals) {
  const shape = SHAPES[model];
  const folder = shape ? await convertOnce(model, (checkpoint) => randomCheckpoint(checkpoint, shape)) : model;
  await measure(open, folder, Number(values.tokens));
}
// Dawn's threads would keep the process alive.
process.exit();
