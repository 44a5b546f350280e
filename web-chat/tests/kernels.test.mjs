// The kernels in the browser's own WebGPU: every shader that it would be given is compiled, and the smallest case of every
// variant, but for one kernel that has many, is run and compared with its reference. `export-cases` wrote the cases;
// `webgpu-kernels/tests/dawn/` runs them.

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
/** How many of a kernel's variants are run; of one of them a software GPU takes seconds to make each. `all` are for the patient. */
const MOST = process.env.WEB_TEST_VARIANTS === 'all' ? '' : '?each=12&attention_tile=4';

test('every kernel gives what its reference gives', { timeout: 15 * PATIENCE, skip: CASES ? false : 'no cases' }, async (t) => {
  const server = await serve({ '/': join(ROOT, 'webgpu-kernels/tests/dawn/'), '/cases/': join(ROOT, CASES, '/') });
  const { context, close } = await launch();
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(0);
    await page.goto(`${server.origin}/${MOST}`);
    await until(page, () => globalThis.report?.isDone || globalThis.report?.error);
    const { adapter, shaders, cases, others, run, seconds, failures, error } = await page.evaluate(() => globalThis.report);
    t.diagnostic(`${adapter?.architecture}: ${shaders} shaders, ${run} of ${cases} cases in ${seconds} s; ${others} are for other devices`);
    assert.equal(error, undefined);
    assert.deepEqual(failures, []);
    assert.ok(run === cases && shaders >= 500 && run >= 120, `${run} of ${cases} cases were run, ${shaders} shaders compiled`);
  } finally {
    await close();
    server.close();
  }
});

/** Shapes of published models, of which the largest have products that 32 bits do not hold. */
const SHAPES = {
  'Llama-3.2-1B': { hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 16, num_attention_heads: 32, num_key_value_heads: 8, head_dim: 64, vocab_size: 128256 },
  'Mistral-7B': { hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8, head_dim: 128, vocab_size: 32768 },
};

test('a GPU’s kernels are planned for large models in 32 bits', { timeout: 3 * PATIENCE }, async () => {
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
      const asked = { ...files, 'mlc-chat-config.json': JSON.stringify({ ...config, model_config, context_window_size: 4096, vocab_size: shape.vocab_size }) };
      // There are no weights: what is planned before they are read is all that is wanted.
      const thrown = await page.evaluate(async (contents) => {
        const { default: init, WebGpu, ChatEngine } = await import('/wasm/web_chat.js');
        await init();
        const bytes = (file) => new TextEncoder().encode(contents[file]);
        const folder = {
          size: async (file) => (file in contents ? bytes(file).length : undefined),
          read: async (file, start, end) => bytes(file).slice(start, end),
          location: () => 'nowhere',
        };
        // A panic ends in an error that nobody awaits.
        const fault = new Promise((resolve) => {
          addEventListener('error', ({ message }) => resolve(message));
          addEventListener('unhandledrejection', ({ reason }) => resolve(String(reason)));
        });
        const load = async () => ChatEngine.load(await WebGpu.open(false, false), folder, '{}', () => {});
        return Promise.race([load().then(() => 'loaded', (error) => `${error.name}: ${error.message}`), fault]);
      }, asked);
      assert.match(thrown, /^MissingFile: .*cache\.json/, name);
    }
  } finally {
    await close();
    server.close();
  }
});
