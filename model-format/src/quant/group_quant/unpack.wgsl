// Group quantization, the WGSL half: see mod.rs beside this file.
// BITS, GROUP_SIZE, MAX_INT and the bindings `q_weight: array<vec4<u32>>` ([rows, groups], four words per group) and
// `q_scale: array<u32>` ([rows, groups] f16, two per word) come from the kernel that imports this.

const CODES_PER_WORD: u32 = 32u / BITS;
const CODE_MASK: u32 = (1u << BITS) - 1u;

// GROUP_SIZE consecutive weights of one row.
struct Block { words: vec4<u32>, scale: f32 }

// Block `b` of row `row`, where a row has `blocks` of them.
fn load_block(row: u32, b: u32, blocks: u32) -> Block {
    let i = row * blocks + b;
    let pair = unpack2x16float(q_scale[i >> 1u]);
    return Block(q_weight[i], select(pair.x, pair.y, (i & 1u) == 1u));
}

// Weights 4 * i .. 4 * i + 4 of a block.
fn block4(block: Block, i: u32) -> vec4<f32> {
    // Four codes may straddle two words when a word does not hold a multiple of four.
    let first = 4u * i;
    let r = vec4<u32>(first, first + 1u, first + 2u, first + 3u);
    let w = vec4<u32>(
        block.words[r.x / CODES_PER_WORD], block.words[r.y / CODES_PER_WORD],
        block.words[r.z / CODES_PER_WORD], block.words[r.w / CODES_PER_WORD],
    );
    let code = (w >> ((r % CODES_PER_WORD) * BITS)) & vec4<u32>(CODE_MASK);
    return (vec4<f32>(code) - f32(MAX_INT)) * block.scale;
}
