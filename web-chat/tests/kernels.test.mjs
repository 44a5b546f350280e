// The kernels in the browser's own WebGPU: every shader that it would be given is compiled, and the smallest cases of some
// variants of each kernel are run and compared with their references. `export-cases` wrote the cases;
// `webgpu-kernels/tests/dawn/` runs them.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { PATIENCE, launch, until } from './browser.mjs';
import { serve } from './server.mjs';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const CASES = process.env.WEB_TEST_CASES;
/** Variants of a kernel that are run: a software GPU takes a second and more to make one. `all` are for the patient. */
const MOST = process.env.WEB_TEST_VARIANTS ?? 3;

test('every kernel gives what its reference gives', { timeout: 15 * PATIENCE, skip: CASES ? false : 'no cases' }, async (t) => {
  const server = await serve({ '/': join(ROOT, 'webgpu-kernels/tests/dawn/'), '/cases/': join(ROOT, CASES, '/') });
  const { context, close } = await launch();
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(0);
    await page.goto(`${server.origin}/${MOST === 'all' ? '' : `?most=${MOST}`}`);
    await until(page, () => globalThis.report?.isDone || globalThis.report?.error);
    const { adapter, shaders, cases, others, run, seconds, failures, error } = await page.evaluate(() => globalThis.report);
    t.diagnostic(`${adapter?.architecture}: ${shaders} shaders, ${run} of ${cases} cases in ${seconds} s; ${others} are for other devices`);
    assert.equal(error, undefined);
    assert.deepEqual(failures, []);
    assert.ok(run === cases && shaders >= 300 && run >= 50, `${run} of ${cases} cases were run, ${shaders} shaders compiled`);
  } finally {
    await close();
    server.close();
  }
});
