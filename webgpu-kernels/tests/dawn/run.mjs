// `node run.mjs FOLDER` runs the cases of `export-cases` on Dawn, the WebGPU of Chrome, and compares them with the references.
// `--probe` only checks for a device. With `FOLDER 3 8` the fourth process of eight runs its share. Exit codes: 0 all correct, 1 some wrong,
// 3 no device.
//
// A software driver takes seconds to minutes to compile a shader. It compiles at the first run, on one thread per device, so each processor
// gets a device. FOLDER/passed.txt lists correct cases by a hash of shaders, case and device. They are not run again.

import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { create, globals } from 'webgpu';
import { check, open, readCases, refused } from './check.mjs';

Object.assign(globalThis, globals);
const gpu = create([]);
const adapter = await gpu.requestAdapter();
if (!adapter) {
    console.error('Dawn finds no device');
    process.exit(3);
}
console.log(`${adapter.info.description || adapter.info.device}: ${[...adapter.features].join(' ')}`);
if (process.argv[2] === '--probe') process.exit(0);

const [folder, share = 0, processes = 1] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const file = readFileSync(join(folder, 'words.bin'));
const bytes = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
const exported = readCases(readFileSync(join(folder, 'cases.json'), 'utf8'), bytes);
const { shaders, words } = exported;
const cases = exported.cases.filter((_, i) => i % processes === share);

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

const devices = Math.ceil(availableParallelism() / processes);
const opened = await Promise.all(Array.from({ length: devices }, () => open(gpu)));
const failures = await refused(opened[0], exported);
console.log(`${shaders.length} shaders compiled, ${failures.length} refused`);
const left = cases.map((testCase) => ({ testCase, hash: key(testCase) })).filter(({ hash }) => !passed.has(hash));
const known = cases.length - left.length;
let right = 0;
await Promise.all(opened.map(async (device) => {
    for (let next; (next = left.shift());) {
        const start = Date.now();
        const wrong = await check(device, exported, next.testCase).catch((error) => error.message);
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
