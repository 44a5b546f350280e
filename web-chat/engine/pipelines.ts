// Compute pipelines made side by side. wgpu asks a browser for a pipeline when it is to be used, so that one is compiled after
// the other; it has no word for those that will be wanted. So the device is given a `createComputePipeline` that begins to
// make pipelines while they are gathered, and has them when they are asked for.

interface Made { module: GPUShaderModule; pipeline?: GPUComputePipeline }

/** How pipelines of one device are made. */
export class Pipelines {
  /** What was gathered and not asked for since, by the text of its shader. */
  readonly #made = new Map<string, Made>();
  readonly #texts = new WeakMap<GPUShaderModule, string>();
  #device: GPUDevice | undefined;
  #coming: Promise<unknown>[] | undefined;

  /** Takes a device over. */
  of(device: GPUDevice): void {
    this.#device = device;
    const [createModule, create] = [device.createShaderModule.bind(device), device.createComputePipeline.bind(device)];
    device.createShaderModule = (descriptor) => {
      const module = this.#made.get(descriptor.code)?.module ?? createModule(descriptor);
      this.#texts.set(module, descriptor.code);
      return module;
    };
    device.createComputePipeline = (descriptor) => {
      const text = this.#texts.get(descriptor.compute.module)!;
      const made = this.#made.get(text);
      if (!this.#coming) {
        this.#made.delete(text);
        return made?.pipeline ?? create(descriptor);
      }
      if (!made) this.#coming.push(this.#begin(device, text, descriptor));
      // Who asks makes no use of it.
      return undefined as unknown as GPUComputePipeline;
    };
  }

  async #begin(device: GPUDevice, text: string, descriptor: GPUComputePipelineDescriptor): Promise<void> {
    const made: Made = { module: descriptor.compute.module };
    this.#made.set(text, made);
    try {
      made.pipeline = await device.createComputePipelineAsync(descriptor);
    } catch {
      // Asked for again it says why.
      this.#made.delete(text);
    }
  }

  /** Calls `ask`, which asks the device for pipelines, and waits until they are made. */
  async gather(ask: () => void): Promise<void> {
    const coming: Promise<unknown>[] = [];
    // A shader that is refused is told of when its pipeline is wanted.
    this.#device?.pushErrorScope('validation');
    this.#coming = coming;
    try {
      ask();
    } finally {
      this.#coming = undefined;
      await this.#device?.popErrorScope().catch(() => null);
    }
    await Promise.all(coming);
  }
}
