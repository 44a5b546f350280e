// The wasm over Chromium's WebGPU without Chromium: Dawn in Node.js, which `cargo xtask dawn` fetches. For GPUs of machines
// that have no browser. `DAWN_FLAGS` are Dawn's own, with commas between.

import { open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';

const PIPELINES = new URL('../engine/pipelines.ts', import.meta.url);
const WASM = new URL('../wasm/', import.meta.url);
const DAWN = new URL('../../webgpu-kernels/tests/dawn/node_modules/webgpu/index.js', import.meta.url);

/** A model on Dawn's device, as `measure.mjs` asks it. */
export async function inDawn(folder) {
  const { create, globals } = await import(DAWN);
  const gpu = create((process.env.DAWN_FLAGS ?? '').split(',').filter(Boolean));
  // What the wasm looks for to tell that it is in a browser.
  Object.assign(globalThis, globals, { Window: class {} });
  Object.defineProperty(globalThis, 'navigator', { value: { gpu }, configurable: true });
  const { default: init, WebGpu, ChatEngine } = await import(new URL('web_chat.js', WASM));
  const { memory } = await init({ module_or_path: await readFile(new URL('web_chat_bg.wasm', WASM)) });

  // As engine/worker.ts does it.
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  const subgroups = adapter.features.has('subgroups') && gpu.wgslLanguageFeatures.has('subgroup_id');
  const prototype = Object.getPrototypeOf(adapter);
  const request = prototype.requestDevice;
  const pipelines = await sideBySide();
  prototype.requestDevice = async function (descriptor = {}) {
    const requiredFeatures = [...(descriptor.requiredFeatures ?? []), ...(subgroups ? ['subgroups'] : [])];
    const device = await request.call(this, { ...descriptor, requiredFeatures });
    pipelines.of(device);
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

/** The engine's own, which is TypeScript. */
async function sideBySide() {
  const { transformWithOxc } = await import('vite');
  const { code } = await transformWithOxc(await readFile(PIPELINES, 'utf8'), 'pipelines.ts');
  const { Pipelines } = await import(`data:text/javascript,${encodeURIComponent(code)}`);
  return new Pipelines();
}
