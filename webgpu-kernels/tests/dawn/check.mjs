// Runs a case of `export-cases` on any WebGPU: in Node.js (`run.mjs`) or in a browser (`index.html`).

/** Output of `export-cases`: `cases.json`, and the bytes of `words.bin`. */
export function readCases(json, bytes) {
    const { shaders, cases, guard, subgroups } = JSON.parse(json);
    return { shaders, cases, guard, subgroups, words: ([first, count]) => new Uint32Array(bytes.slice(4 * first, 4 * (first + count))) };
}

/** The cases that fit the device. Variants with subgroups need the sizes that they were exported for. */
export function fitting({ device, adapter }, { shaders, cases, subgroups }) {
    const { subgroupMinSize, subgroupMaxSize } = adapter.info;
    const sizes = [subgroupMinSize, subgroupMaxSize];
    // Browsers may hide this.
    const isLike = device.features.has('subgroups') && subgroups?.every((size, i) => size === (sizes[i] ?? size));
    return cases.filter(({ dispatches }) => isLike || !dispatches.some(({ shader }) => shaders[shader].wgsl.startsWith('enable subgroups')));
}

/** Selects at most `most[kernel]` or `each` cases of each kernel, evenly spaced. */
export function some(cases, most) {
    const kernels = Map.groupBy(cases, ({ name }) => name.split(' ')[0]);
    return [...kernels].flatMap(([name, all]) => all.filter((_, i) => i % Math.ceil(all.length / (most[name] ?? most.each ?? Infinity) || 1) === 0));
}

/** Shaders that the compiler rejects. All are compiled, also those of cases that do not run. */
export async function refused({ device }, { shaders }) {
    const failures = [];
    for (const { wgsl } of shaders) {
        const { messages } = await device.createShaderModule({ code: wgsl }).getCompilationInfo();
        for (const { type, lineNum, message } of messages) {
            if (type === 'error') failures.push(`${wgsl.slice(0, 200)} ... line ${lineNum}: ${message}`);
        }
    }
    return failures;
}

/** A device with a cache of its pipelines, as promises. */
export async function open(gpu) {
    const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
    const features = ['subgroups', 'shader-f16'].filter((name) => adapter.features.has(name));
    return { adapter, device: await adapter.requestDevice({ requiredFeatures: features }), pipelines: new Map() };
}

/** Starts to compile the pipelines of a case. A software GPU takes a second for each, but compiles several at a time. */
export function prepare(opened, exported, { dispatches }) {
    for (const { shader } of dispatches) {
        // The case reports the reason.
        pipeline(opened, exported, shader).catch(() => undefined);
    }
}

function pipeline(opened, exported, index) {
    const { pipelines } = opened;
    if (!pipelines.has(index)) pipelines.set(index, makePipeline(opened, exported.shaders[index]));
    return pipelines.get(index);
}

async function makePipeline({ device }, { wgsl, bindings, params }) {
    const uniform = { type: 'uniform', minBindingSize: params };
    const entries = [uniform, ...bindings.map((type) => ({ type }))].map((buffer, binding) => ({
        binding, visibility: GPUShaderStage.COMPUTE, buffer,
    }));
    const layout = device.createBindGroupLayout({ entries });
    const module = device.createShaderModule({ code: wgsl });
    const messages = (await module.getCompilationInfo()).messages.filter((message) => message.type === 'error');
    if (messages.length > 0) throw new Error(messages.map((m) => `line ${m.lineNum}: ${m.message}`).join('; '));
    const made = await device.createComputePipelineAsync({
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: 'main' },
    });
    return { layout, made };
}

function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/** Rows of a cache in eight bits: codes, padded to eights, then a scale for each 32 of them, an even number of words. */
function eightBits(headDim, found) {
    const width = Math.ceil(headDim / 8) * 8;
    const stride = width / 4 + Math.ceil(width / 64) * 2;
    const values = [];
    for (let row = 0; row < found.length; row += stride) {
        const codes = new Int8Array(found.buffer, found.byteOffset + 4 * row, width);
        const scales = new Float32Array(found.buffer, found.byteOffset + 4 * row + width, stride - width / 4);
        for (let i = 0; i < width; i++) values.push(codes[i] * scales[Math.floor(i / 32)]);
    }
    return Float32Array.from(values);
}

function decoded(purpose, found) {
    if (purpose === 'f32') return new Float32Array(found.buffer, found.byteOffset, found.length);
    if (purpose === 'u32') return Float32Array.from(found);
    if (purpose.startsWith('q8 ')) return eightBits(Number(purpose.slice(3)), found);
    return Float32Array.from([...found].flatMap((word) => [half(word & 0xffff), half(word >>> 16)]));
}

function compare(found, expected, tolerance) {
    if (found.length !== expected.length) return `${found.length} values, expected ${expected.length}`;
    let [error, power] = [0, 0];
    for (let i = 0; i < found.length; i++) {
        if (!Number.isFinite(found[i])) return `value ${i} is ${found[i]}, expected ${expected[i]}`;
        error += (found[i] - expected[i]) ** 2;
        power += expected[i] ** 2;
    }
    const nmse = error === 0 ? 0 : error / power;
    return nmse <= tolerance ? undefined : `normalized mean squared error ${nmse} over ${tolerance}`;
}

/** What is wrong with a case, or nothing. */
export async function check(opened, exported, testCase) {
    const { device } = opened;
    const { words, guard } = exported;
    device.pushErrorScope('validation');
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffers = new Map();
    for (const { id, words: at } of [...testCase.buffers, ...testCase.uploads]) {
        const content = words(at);
        const buffer = device.createBuffer({ size: content.byteLength, usage });
        device.queue.writeBuffer(buffer, 0, content);
        buffers.set(id, buffer);
    }
    const encoder = device.createCommandEncoder();
    const uniforms = [];
    for (const { shader, params, bindings, groups } of testCase.dispatches) {
        const { layout, made } = await pipeline(opened, exported, shader);
        const content = words(params);
        const size = Math.max(16, Math.ceil(content.byteLength / 16) * 16);
        const uniform = device.createBuffer({ size, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
        device.queue.writeBuffer(uniform, 0, content);
        uniforms.push(uniform);
        const entries = [{ binding: 0, resource: { buffer: uniform } }];
        bindings.forEach(({ id, offset, size }, i) => {
            if (!buffers.has(id)) buffers.set(id, device.createBuffer({ size, usage }));
            entries.push({ binding: i + 1, resource: { buffer: buffers.get(id), offset } });
        });
        const pass = encoder.beginComputePass();
        pass.setPipeline(made);
        pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
        pass.dispatchWorkgroups(...groups);
        pass.end();
    }
    const results = testCase.buffers.map(({ id }) => {
        const source = buffers.get(id);
        const staging = device.createBuffer({ size: source.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
        encoder.copyBufferToBuffer(source, 0, staging, 0, source.size);
        return staging;
    });
    device.queue.submit([encoder.finish()]);
    const invalid = await device.popErrorScope();
    if (invalid) return invalid.message;
    const expected = testCase.expected.map((at) => new Float32Array(words(at).buffer));
    for (const [i, { purpose }] of testCase.buffers.entries()) {
        await results[i].mapAsync(GPUMapMode.READ);
        const found = new Uint32Array(results[i].getMappedRange().slice(0));
        if (found.slice(found.length - guard).some((word) => word !== 0x7fc0dead)) {
            return `buffer ${i}: a word after its end was written`;
        }
        if (purpose === 'input') continue;
        const values = decoded(purpose, found.slice(0, found.length - guard));
        const wrong = compare(values, expected.shift(), testCase.tolerance);
        if (wrong) return `buffer ${i}: ${wrong}`;
    }
    for (const buffer of [...buffers.values(), ...results, ...uniforms]) buffer.destroy();
    return undefined;
}
