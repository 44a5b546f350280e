// Test models, converted by `weight-convert`, and the answers of `chat-cli` to compare with.

import { execFile } from 'node:child_process';
import { copyFile, mkdir, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TESTDATA = join(ROOT, 'testdata');

/** Output folder for models and screenshots. */
export const OUTPUT = join(ROOT, process.env.WEB_TEST_OUTPUT ?? 'target/web-test');
/** Folder of the models, which the test server offers. */
export const MODELS = join(OUTPUT, 'models');
/** Folder of the demo model, if it could be fetched. */
export const DEMO = process.env.WEB_TEST_DEMO_MODEL && join(ROOT, process.env.WEB_TEST_DEMO_MODEL);

const CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
  + '{% if add_generation_prompt %}assistant:{% endif %}';

function program(name) {
  return join(ROOT, 'target', 'release', process.platform === 'win32' ? `${name}.exe` : name);
}

/** The model of `testdata/arch/llama`: 0.2 MB, one shard. It is fast and its text has no meaning. */
export async function tinyModel() {
  const source = join(TESTDATA, 'arch', 'llama', 'hf');
  return convertOnce('tiny', async (checkpoint) => {
    for (const name of ['config.json', 'generation_config.json', 'model.safetensors']) {
      await copyFile(join(source, name), join(checkpoint, name));
    }
  });
}

/** A model with random weights and more layers: about 6 MB in about 6 shards. */
export async function shardedModel() {
  return convertOnce('sharded', (checkpoint) => randomCheckpoint(checkpoint, {
    hidden_size: 256, intermediate_size: 640, num_hidden_layers: 14, num_attention_heads: 8, num_key_value_heads: 4,
  }));
}

/** Writes a checkpoint with random weights. `shape` overrides fields of the tiny model's config.json. */
export async function randomCheckpoint(folder, shape) {
  const config = { ...JSON.parse(await readFile(join(TESTDATA, 'arch/llama/hf/config.json'), 'utf8')), ...shape };
  const { hidden_size: hidden, intermediate_size: inner, num_key_value_heads: kvHeads, head_dim: headDim, vocab_size: vocab } = config;
  const queries = config.num_attention_heads * headDim;
  const tensors = [['model.embed_tokens.weight', [vocab, hidden]], ['model.norm.weight', [hidden]]];
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const name = `model.layers.${layer}`;
    tensors.push(
      [`${name}.input_layernorm.weight`, [hidden]], [`${name}.post_attention_layernorm.weight`, [hidden]],
      [`${name}.self_attn.q_proj.weight`, [queries, hidden]], [`${name}.self_attn.k_proj.weight`, [kvHeads * headDim, hidden]],
      [`${name}.self_attn.v_proj.weight`, [kvHeads * headDim, hidden]], [`${name}.self_attn.o_proj.weight`, [hidden, queries]],
      [`${name}.mlp.gate_proj.weight`, [inner, hidden]], [`${name}.mlp.up_proj.weight`, [inner, hidden]],
      [`${name}.mlp.down_proj.weight`, [hidden, inner]],
    );
  }
  const header = {};
  let at = 0;
  for (const [name, dims] of tensors) {
    const bytes = 2 * dims.reduce((product, dim) => product * dim, 1);
    header[name] = { dtype: 'F16', shape: dims, data_offsets: [at, at + bytes] };
    at += bytes;
  }
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  const json = Buffer.from(JSON.stringify(header));
  const file = await open(join(folder, 'model.safetensors'), 'w');
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  await file.write(length);
  await file.write(json);
  // 2 Mi values from a linear congruential generator, repeated: f16 of either sign with magnitudes from 2^-6 to 2^-4.
  const piece = new Uint16Array(1 << 21);
  let state = 12345;
  for (let i = 0; i < piece.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    piece[i] = ((state >>> 16) & 0x8000) | (9 << 10) | ((state >>> 8) & 0x7ff);
  }
  const bytes = Buffer.from(piece.buffer);
  for (let left = at; left > 0; left -= bytes.length) await file.write(bytes.subarray(0, Math.min(left, bytes.length)));
  await file.close();
}

/** Converts the checkpoint that `write` writes, unless the result exists. */
export async function convertOnce(name, write) {
  const folder = join(MODELS, name);
  if (await stat(join(folder, 'tensor-cache.json')).catch(() => undefined)) return folder;
  const checkpoint = join(OUTPUT, 'checkpoints', name);
  await rm(checkpoint, { recursive: true, force: true });
  await mkdir(checkpoint, { recursive: true });
  await write(checkpoint);
  await copyFile(join(TESTDATA, 'mlc/arch-llama/tokenizer/tokenizer.json'), join(checkpoint, 'tokenizer.json'));
  const tokenizer = { tokenizer_class: 'PreTrainedTokenizerFast', bos_token: '<|bos|>', eos_token: '<|eot|>', chat_template: CHAT_TEMPLATE };
  await writeFile(join(checkpoint, 'tokenizer_config.json'), JSON.stringify(tokenizer));
  await run(program('weight-convert'), ['convert', checkpoint, '-o', folder, '--conv-template', 'chatml', '--shard-size', '1']);
  await rm(checkpoint, { recursive: true, force: true });
  return folder;
}

/** The greedy answer of `chat-cli`, as its JSON report, on the first GPU (software counts), else on the CPU. */
export async function nativeAnswer(folder, prompt, maxTokens, { system, flags = [] } = {}) {
  const devices = JSON.parse((await run(program('chat-cli'), ['devices', '--json'])).stdout);
  const device = devices.length > 0 ? '0' : 'cpu';
  const { stdout } = await run(program('chat-cli'), [
    'chat', folder, '-p', prompt, '--temperature', '0', '--max-tokens', String(maxTokens), '--device', device, '--json',
    ...(system ? ['--system', system] : []), ...flags,
  ]);
  return JSON.parse(stdout);
}
