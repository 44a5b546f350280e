// Compiles compute pipelines in parallel. wgpu creates a pipeline synchronously at its first use and has no way to announce
// later ones, so a browser compiles one after another. This module replaces `createComputePipeline` of the device: during
// `compile` it starts asynchronous compilations, and afterwards it returns the compiled pipelines.

interface Compiled { module: GPUShaderModule; pipeline?: GPUComputePipeline }

/** Compiles the pipelines of one device. */
export class Pipelines {
  /** Pipelines that were compiled ahead and not used yet, by WGSL source. */
  readonly #compiled = new Map<string, Compiled>();
  /** WGSL source of each module. */
  readonly #sources = new WeakMap<GPUShaderModule, string>();
  #device: GPUDevice | undefined;
  /** Running compilations; `undefined` outside of `compile`. */
  #pending: Promise<unknown>[] | undefined;

  /** Replaces the device's methods for shader modules and compute pipelines. */
  attach(device: GPUDevice): void {
    this.#device = device;
    const [createModule, create] = [device.createShaderModule.bind(device), device.createComputePipeline.bind(device)];
    device.createShaderModule = (descriptor) => {
      const module = this.#compiled.get(descriptor.code)?.module ?? createModule(descriptor);
      this.#sources.set(module, descriptor.code);
      return module;
    };
    device.createComputePipeline = (descriptor) => {
      const source = this.#sources.get(descriptor.compute.module)!;
      const compiled = this.#compiled.get(source);
      if (!this.#pending) {
        this.#compiled.delete(source);
        return compiled?.pipeline ?? create(descriptor);
      }
      if (!compiled) this.#pending.push(this.#start(device, source, descriptor));
      // The caller of `compile` discards the pipelines it requests.
      return undefined as unknown as GPUComputePipeline;
    };
  }

  async #start(device: GPUDevice, source: string, descriptor: GPUComputePipelineDescriptor): Promise<void> {
    const compiled: Compiled = { module: descriptor.compute.module };
    this.#compiled.set(source, compiled);
    try {
      compiled.pipeline = await device.createComputePipelineAsync(descriptor);
    } catch {
      // The synchronous creation at first use reports the error.
      this.#compiled.delete(source);
    }
  }

  /** Calls `request`, which asks the device for pipelines, and waits until they are compiled. */
  async compile(request: () => void): Promise<void> {
    const pending: Promise<unknown>[] = [];
    // Hide validation errors here: they are reported when the pipeline is used.
    this.#device?.pushErrorScope('validation');
    this.#pending = pending;
    try {
      request();
    } finally {
      this.#pending = undefined;
      await this.#device?.popErrorScope().catch(() => null);
    }
    await Promise.all(pending);
  }
}
