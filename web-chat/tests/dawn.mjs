// Runs the wasm in Node.js on Dawn, Chromium's WebGPU implementation, for machines with a GPU and no browser. `cargo xtask dawn`
// fetches Dawn. `DAWN_FLAGS` has Dawn's flags, separated by commas.

import { open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';

const PIPELINES = new URL('../engine/pipelines.ts', import.meta.url);
const WASM = new URL('../wasm/', import.meta.url);
const DAWN = new URL('../../webgpu-kernels/tests/dawn/node_modules/webgpu/index.js', import.meta.url);

/** Loads a model on Dawn's device, for `measure.mjs`. */
export async function inDawn(folder) {
  const { create, globals } = await import(DAWN);
  const gpu = create((process.env.DAWN_FLAGS ?? '').split(',').filter(Boolean));
  // The wasm detects a browser by these.
  Object.assign(globalThis, globals, { Window: class {} });
  Object.defineProperty(globalThis, 'navigator', { value: { gpu }, configurable: true });
  const { default: init, WebGpu, ChatEngine } = await import(new URL('web_chat.js', WASM));
  const { memory } = await init({ module_or_path: await readFile(new URL('web_chat_bg.wasm', WASM)) });

  // The same as in engine/worker.ts.
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  const subgroups = adapter.features.has('subgroups') && gpu.wgslLanguageFeatures.has('subgroup_id');
  const prototype = Object.getPrototypeOf(adapter);
  const request = prototype.requestDevice;
  const pipelines = await loadPipelines();
  prototype.requestDevice = async function (descriptor = {}) {
    const requiredFeatures = [...(descriptor.requiredFeatures ?? []), ...(subgroups ? ['subgroups'] : [])];
    const device = await request.call(this, { ...descriptor, requiredFeatures });
    pipelines.attach(device);
    return device;
  };
  const device = await WebGpu.open(subgroups, true, pipelines);
  const files = {
    size: async (name) => (await stat(join(folder, name)).catch(() => undefined))?.size,
    async read(name, start, end) {
      const file = await open(join(folder, name));
      const bytes = new Uint8Array(end - start);
      await file.read(bytes, 0, bytes.length, start);
      await file.close();
      return bytes;
    },
    location: () => folder,
  };
  const engine = await ChatEngine.load(device, files, '{}', () => {});
  const { vendor, architecture, description } = adapter.info;
  const { f16 } = JSON.parse(device.info());
  return {
    adapter: { vendor, architecture, description, f16, subgroups },
    info: async () => ({ ...JSON.parse(engine.info()), heapBytes: memory.buffer.byteLength }),
    async answer(content, max_tokens) {
      engine.reset();
      let text = '';
      const report = await engine.answer(JSON.stringify([{ role: 'user', content }]), JSON.stringify({ temperature: 0, max_tokens }), (piece) => {
        text += piece;
        return true;
      });
      const { prefillTokensPerSecond, decodeTokensPerSecond } = JSON.parse(report);
      return { text, prefill_tokens_per_s: prefillTokensPerSecond, decode_tokens_per_s: decodeTokensPerSecond };
    },
    close: async () => engine.free(),
  };
}

/** The engine's `Pipelines`, compiled from TypeScript. */
async function loadPipelines() {
  const { transformWithOxc } = await import('vite');
  const { code } = await transformWithOxc(await readFile(PIPELINES, 'utf8'), 'pipelines.ts');
  const { Pipelines } = await import(`data:text/javascript,${encodeURIComponent(code)}`);
  return new Pipelines();
}
