// The models under test, converted by our own program, and what our own terminal answers with them.

import { execFile } from 'node:child_process';
import { copyFile, mkdir, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TESTDATA = join(ROOT, 'testdata');

/** Where tests leave models and screenshots. */
export const OUTPUT = join(ROOT, process.env.WEB_TEST_OUTPUT ?? 'target/web-test');
/** The folder under which a server offers models. */
export const MODELS = join(OUTPUT, 'models');
/** The demo model's folder, where it could be had. */
export const DEMO = process.env.WEB_TEST_DEMO_MODEL && join(ROOT, process.env.WEB_TEST_DEMO_MODEL);

const CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
  + '{% if add_generation_prompt %}assistant:{% endif %}';

function program(name) {
  return join(ROOT, 'target', 'release', process.platform === 'win32' ? `${name}.exe` : name);
}

/** The tiny model of `testdata/arch/llama`: 0.2 MB in one shard, and as quick as it is senseless. */
export async function tinyModel() {
  const source = join(TESTDATA, 'arch', 'llama', 'hf');
  return made('tiny', async (checkpoint) => {
    for (const name of ['config.json', 'generation_config.json', 'model.safetensors']) {
      await copyFile(join(source, name), join(checkpoint, name));
    }
  });
}

/** A model of random weights of the tiny one's kind, with more layers: some 6 MB in 6 shards or so. */
export async function shardedModel() {
  return made('sharded', (checkpoint) => randomCheckpoint(checkpoint, {
    hidden_size: 256, intermediate_size: 640, num_hidden_layers: 14, num_attention_heads: 8, num_key_value_heads: 4,
  }));
}

/** Writes a checkpoint of random weights; `shape` is what its config.json has besides the tiny model's. */
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
  // f16 of either sign between 2^-6 and 2^-4, the same megabytes again and again: a linear congruential generator.
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

/** Converts a checkpoint that `write` writes, unless that was done before. */
export async function made(name, write) {
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

/** What the terminal answers greedily, on a GPU, software included, where it finds one. */
export async function nativeAnswer(folder, prompt, maxTokens, { system, flags = [] } = {}) {
  const devices = JSON.parse((await run(program('chat-cli'), ['devices', '--json'])).stdout);
  const device = devices.length > 0 ? '0' : 'cpu';
  const { stdout } = await run(program('chat-cli'), [
    'chat', folder, '-p', prompt, '--temperature', '0', '--max-tokens', String(maxTokens), '--device', device, '--json',
    ...(system ? ['--system', system] : []), ...flags,
  ]);
  return JSON.parse(stdout);
}
