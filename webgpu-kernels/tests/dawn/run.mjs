// Runs what `export-cases` wrote on Dawn, the WebGPU of Chrome, and compares with the references:
// `node run.mjs FOLDER`. With `--probe`, only says whether there is a device. Exit codes: 0 all right, 1 some are wrong,
// 3 no device.
//
// A software driver takes seconds to minutes to compile a shader, which it does when it is first run, in one thread of each
// device: so there are as many devices as processors. What was right is noted in FOLDER/passed.txt, by a hash of the
// shaders, the case and the device, and not run again.

import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { create, globals } from 'webgpu';

Object.assign(globalThis, globals);
const gpu = create([]);
const adapter = await gpu.requestAdapter();
if (!adapter) {
    console.error('Dawn finds no device');
    process.exit(3);
}
console.log(`${adapter.info.description || adapter.info.device}: ${[...adapter.features].join(' ')}`);
if (process.argv[2] === '--probe') process.exit(0);

const folder = process.argv[2];
const { shaders, cases, guard } = JSON.parse(readFileSync(join(folder, 'cases.json'), 'utf8'));
const file = readFileSync(join(folder, 'words.bin'));
const words = ([first, count]) => new Uint32Array(file.buffer.slice(file.byteOffset + 4 * first, file.byteOffset + 4 * (first + count)));

const passedFile = join(folder, 'passed.txt');
const passed = new Set(existsSync(passedFile) ? readFileSync(passedFile, 'utf8').split('\n') : []);
const { vendor, architecture, device: model, description } = adapter.info;

/** What tells whether a case has been run as it is now. */
function key({ name, tolerance, buffers, dispatches, expected }) {
    const hash = createHash('sha256').update(JSON.stringify([vendor, architecture, model, description, name, tolerance]));
    const add = (at) => hash.update(words(at));
    buffers.forEach((buffer) => add(buffer.words));
    expected.forEach(add);
    for (const { shader, params, groups } of dispatches) {
        hash.update(JSON.stringify([shaders[shader], groups]));
        add(params);
    }
    return hash.digest('hex');
}

/** A device with its pipelines, each made once. */
async function open() {
    const adapter = await gpu.requestAdapter();
    const features = ['subgroups', 'shader-f16'].filter((name) => adapter.features.has(name));
    return { device: await adapter.requestDevice({ requiredFeatures: features }), pipelines: new Map() };
}

async function pipeline({ device, pipelines }, index) {
    if (pipelines.has(index)) return pipelines.get(index);
    const { wgsl, bindings, params } = shaders[index];
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
    pipelines.set(index, { layout, made });
    return pipelines.get(index);
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
    return nmse <= tolerance ? undefined : `normalised mean squared error ${nmse} over ${tolerance}`;
}

/** What is wrong with a case, or nothing. */
async function check(opened, testCase) {
    const { device } = opened;
    device.pushErrorScope('validation');
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffers = new Map();
    for (const { id, words: at } of testCase.buffers) {
        const content = words(at);
        const buffer = device.createBuffer({ size: content.byteLength, usage });
        device.queue.writeBuffer(buffer, 0, content);
        buffers.set(id, buffer);
    }
    const encoder = device.createCommandEncoder();
    const uniforms = [];
    for (const { shader, params, bindings, groups } of testCase.dispatches) {
        const { layout, made } = await pipeline(opened, shader);
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
            return `buffer ${i}: a word behind its end was written`;
        }
        if (purpose === 'input') continue;
        const values = decoded(purpose, found.slice(0, found.length - guard));
        const wrong = compare(values, expected.shift(), testCase.tolerance);
        if (wrong) return `buffer ${i}: ${wrong}`;
    }
    for (const buffer of [...buffers.values(), ...results, ...uniforms]) buffer.destroy();
    return undefined;
}

const failures = [];
const opened = await Promise.all(Array.from({ length: availableParallelism() }, open));
// What is not run is compiled at least, with all that the language demands.
for (const { wgsl } of shaders) {
    const { messages } = await opened[0].device.createShaderModule({ code: wgsl }).getCompilationInfo();
    for (const { type, lineNum, message } of messages) {
        if (type === 'error') failures.push(`${wgsl.slice(0, 200)} ... line ${lineNum}: ${message}`);
    }
}
console.log(`${shaders.length} shaders compiled, ${failures.length} refused`);
const left = cases.map((testCase) => ({ testCase, hash: key(testCase) })).filter(({ hash }) => !passed.has(hash));
const known = cases.length - left.length;
let right = 0;
await Promise.all(opened.map(async (device) => {
    for (let next; (next = left.shift());) {
        const start = Date.now();
        const wrong = await check(device, next.testCase).catch((error) => error.message);
        if (wrong) {
            failures.push(`${next.testCase.name}: ${wrong}`);
        } else {
            right += 1;
            appendFileSync(passedFile, `${next.hash}\n`);
        }
        console.log(`${String(Date.now() - start).padStart(6)} ms  ${next.testCase.name}`);
    }
}));
for (const failure of failures) console.error(failure);
console.log(`${known + right} of ${cases.length} cases right, ${known} of them as they were before; ${shaders.length} shaders`);
process.exit(failures.length > 0 || cases.length === 0 ? 1 : 0);
