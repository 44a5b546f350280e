// Builds the package for apps in `package/`: engine, worker, wasm, types and README. Each script is a single file. It refers
// to the others by `new URL('...', import.meta.url)`, which bundlers and browsers both support.

import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { rolldown } from 'rolldown';

const OUT = 'package';
const ENTRIES = { index: 'engine/index.ts', worker: 'engine/worker.ts' };

await rm(OUT, { recursive: true, force: true });
await mkdir(OUT);
for (const [name, input] of Object.entries(ENTRIES)) {
  const bundle = await rolldown({
    input,
    plugins: [{ name: 'worker-url', renderChunk: (code) => code.replaceAll('./worker.ts', './worker.js') }],
  });
  await bundle.write({ file: `${OUT}/${name}.js`, format: 'es', minify: { compress: true, mangle: true, codegen: true } });
}
await copyFile('wasm/web_chat_bg.wasm', `${OUT}/web_chat_bg.wasm`);
await copyFile('engine/README.md', `${OUT}/README.md`);

const { name, version, license } = JSON.parse(await readFile('package.json', 'utf8'));
const manifest = {
  name, version, license,
  description: 'Runs language models in MLC format on the visitor’s GPU, through WebGPU',
  type: 'module',
  exports: { '.': { types: './types/index.d.ts', default: './index.js' } },
  types: './types/index.d.ts',
  // Importing the worker script has effects: bundlers must not remove it.
  sideEffects: ['./worker.js'],
};
await writeFile(`${OUT}/package.json`, `${JSON.stringify(manifest, null, 2)}\n`);
