// The kernels in the browser's WebGPU: compiles every shader for this adapter, runs the smallest case of most variants, and
// compares with the references. `export-cases` writes the cases; `webgpu-kernels/tests/dawn/` runs them.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { PATIENCE, launch, until } from './browser.mjs';
import { tinyModel } from './models.mjs';
import { serve } from './server.mjs';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const CASES = process.env.WEB_TEST_CASES;
/** Limits the variants that run, because a software GPU needs seconds to compile some of them. `all` runs every variant. */
const VARIANT_LIMITS = process.env.WEB_TEST_VARIANTS === 'all' ? '' : '?each=12&attention_tile=4';

test('every kernel agrees with its reference', { timeout: 15 * PATIENCE, skip: CASES ? false : 'no cases' }, async (t) => {
  const server = await serve({ '/': join(ROOT, 'webgpu-kernels/tests/dawn/'), '/cases/': join(ROOT, CASES, '/') });
  const { context, close } = await launch();
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(0);
    await page.goto(`${server.origin}/${VARIANT_LIMITS}`);
    await until(page, () => globalThis.report?.isDone || globalThis.report?.error);
    const { adapter, shaders, cases, others, run, seconds, failures, error } = await page.evaluate(() => globalThis.report);
    t.diagnostic(`${adapter?.architecture}: ${shaders} shaders, ${run} of ${cases} cases in ${seconds} s; ${others} are for other devices`);
    assert.equal(error, undefined);
    assert.deepEqual(failures, []);
    assert.ok(run === cases && shaders >= 500 && run >= 120, `${run} of ${cases} cases ran, ${shaders} shaders compiled`);
  } finally {
    await close();
    server.close();
  }
});

/** Shapes of published models. Some products of their sizes exceed 32 bits. */
const SHAPES = {
  'Llama-3.2-1B': { hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 16, num_attention_heads: 32, num_key_value_heads: 8, head_dim: 64, vocab_size: 128256 },
  'Mistral-7B': { hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8, head_dim: 128, vocab_size: 32768 },
};

test('planning for large models does not overflow wasm’s 32-bit integers', { timeout: 3 * PATIENCE }, async () => {
  const tiny = await tinyModel();
  const text = (name) => readFile(join(tiny, name), 'utf8');
  const config = JSON.parse(await text('mlc-chat-config.json'));
  const files = { 'tokenizer.json': await text('tokenizer.json'), 'tokenizer_config.json': await text('tokenizer_config.json') };
  const server = await serve({ '/': join(ROOT, 'webgpu-kernels/tests/dawn/'), '/wasm/': join(ROOT, 'web-chat/wasm/') });
  const { context, close } = await launch();
  try {
    const page = await context.newPage();
    await page.goto(`${server.origin}/check.mjs`);
    for (const [name, shape] of Object.entries(SHAPES)) {
      const model_config = { ...config.model_config, ...shape, tie_word_embeddings: true, context_window_size: 4096 };
      const contents = { ...files, 'mlc-chat-config.json': JSON.stringify({ ...config, model_config, context_window_size: 4096, vocab_size: shape.vocab_size }) };
      // The folder has no weights: the test ends after planning, when the engine looks for them.
      const thrown = await page.evaluate(async (contents) => {
        const { default: init, WebGpu, ChatEngine } = await import('/wasm/web_chat.js');
        await init();
        const bytes = (file) => new TextEncoder().encode(contents[file]);
        const folder = {
          size: async (file) => (file in contents ? bytes(file).length : undefined),
          read: async (file, start, end) => bytes(file).slice(start, end),
          location: () => 'nowhere',
        };
        // A panic appears as an uncaught error.
        const panic = new Promise((resolve) => {
          addEventListener('error', ({ message }) => resolve(message));
          addEventListener('unhandledrejection', ({ reason }) => resolve(String(reason)));
        });
        const load = async () => ChatEngine.load(await WebGpu.open(false, false), folder, '{}', () => {});
        return Promise.race([load().then(() => 'loaded', (error) => `${error.name}: ${error.message}`), panic]);
      }, contents);
      assert.match(thrown, /^MissingFile: .*cache\.json/, name);
    }
  } finally {
    await close();
    server.close();
  }
});
