// Group quantization, the WGSL half: see mod.rs beside this file.
// BITS, GROUP_SIZE, MAX_INT and the bindings `q_weight: array<Words>` ([rows, blocks], a block being a group of four
// words, half or a quarter of one) and `q_scale: array<u32>` ([rows, groups] f16, two per word) come from the kernel that imports
// this; with OWN_LOADS it reads them itself.

const CODES_PER_WORD: u32 = 32u / BITS;
const CODE_MASK: u32 = (1u << BITS) - 1u;

#ifdef QUARTERS
// A word of a group is a block.
alias Words = u32;
const BLOCKS_PER_GROUP: u32 = 4u;
#else
#ifdef HALVES
// Half a group is a block.
alias Words = vec2<u32>;
const BLOCKS_PER_GROUP: u32 = 2u;
#else
alias Words = vec4<u32>;
const BLOCKS_PER_GROUP: u32 = 1u;
#endif
#endif

// Consecutive weights of one row.
struct Block { words: Words, scale: f32 }

#ifndef OWN_LOADS
// Block `b` of row `row`, where a row has `blocks` of them.
fn load_block(row: u32, b: u32, blocks: u32) -> Block {
    let i = row * blocks + b;
    return Block(q_weight[i], group_scale(i / BLOCKS_PER_GROUP));
}

fn group_scale(group: u32) -> f32 {
    let pair = unpack2x16float(q_scale[group >> 1u]);
    return select(pair.x, pair.y, (group & 1u) == 1u);
}
#endif

// A dot product of block and x is block_scale(block) * sum over i of dot(raw4(block, i), spread(x4)): what can be done
// once per block, or once per x for many rows, is not done per weight.

#ifdef EIGHT_NIBBLES
// A nibble that is put into the low bits of 2^23's mantissa is a float without a conversion: 2^23 + code * 16^j for the
// j-th nibble. The 16^j is divided out of x. All of this is exact.
const SPREAD: vec4<f32> = vec4<f32>(1.0, 1.0 / 16.0, 1.0 / 256.0, 1.0 / 4096.0);
const MAGIC: vec4<f32> = vec4<f32>(8388608.0) + f32(MAX_INT) / SPREAD;

fn spread(x: vec4<f32>) -> vec4<f32> {
    return x * SPREAD;
}

// Weights 4 * i .. 4 * i + 4 without their scale, times 1 / SPREAD.
fn raw4(block: Block, i: u32) -> vec4<f32> {
#ifdef QUARTERS
    return of_nibbles(block.words >> (16u * i));
#else
    return of_nibbles(block.words[i >> 1u] >> (16u * (i & 1u)));
#endif
}

fn of_nibbles(word: u32) -> vec4<f32> {
    let nibbles = vec4<u32>(word) & vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u);
    return bitcast<vec4<f32>>(nibbles | vec4<u32>(0x4b000000u)) - MAGIC;
}

// Weights 4 * i .. 4 * i + 4 of a block.
fn block4(block: Block, i: u32) -> vec4<f32> {
    return raw4(block, i) * SPREAD * block.scale;
}

#ifdef INTEGER
// Weights 8 * i .. 8 * i + 8 without their scale, MAX_INT too much, as bytes: the even ones, the odd ones.
fn code_bytes(block: Block, i: u32) -> vec2<u32> {
#ifdef QUARTERS
    return bytes_of(block.words);
#else
    return bytes_of(block.words[i]);
#endif
}

// The same of a word.
fn bytes_of(word: u32) -> vec2<u32> {
    return vec2<u32>(word, word >> 4u) & vec2<u32>(0x0f0f0f0fu);
}
#endif

#ifndef OWN_LOADS
// PART_QUADS quads of weights, as they are fetched from memory.
struct Part { word: u32, scale: f32 }

// Part `part` of block `b` of row `row`.
fn load_part(row: u32, b: u32, part: u32, blocks: u32) -> Part {
    let i = row * blocks + b;
#ifdef QUARTERS
    return Part(q_weight[i], group_scale(i / BLOCKS_PER_GROUP));
#else
    return Part(q_weight[i][part], group_scale(i / BLOCKS_PER_GROUP));
#endif
}

// Weights 4 * i .. 4 * i + 4 of a part.
fn part4(part: Part, i: u32) -> vec4<f32> {
    return of_nibbles(part.word >> (16u * i)) * (SPREAD * part.scale);
}
#endif
#else
fn spread(x: vec4<f32>) -> vec4<f32> {
    return x;
}

// Weights 4 * i .. 4 * i + 4 without their scale.
fn raw4(block: Block, i: u32) -> vec4<f32> {
    // Four codes may straddle two words when a word does not hold a multiple of four.
    let first = 4u * i;
    let r = vec4<u32>(first, first + 1u, first + 2u, first + 3u);
    let w = vec4<u32>(
        block.words[r.x / CODES_PER_WORD], block.words[r.y / CODES_PER_WORD],
        block.words[r.z / CODES_PER_WORD], block.words[r.w / CODES_PER_WORD],
    );
    let code = (w >> ((r % CODES_PER_WORD) * BITS)) & vec4<u32>(CODE_MASK);
    return vec4<f32>(code) - f32(MAX_INT);
}

// Weights 4 * i .. 4 * i + 4 of a block.
fn block4(block: Block, i: u32) -> vec4<f32> {
    return raw4(block, i) * block.scale;
}

// A quad of weights.
struct Part { weights: vec4<f32> }

// Part `part` of block `b` of row `row`.
fn load_part(row: u32, b: u32, part: u32, blocks: u32) -> Part {
    return Part(block4(load_block(row, b, blocks), part));
}

// The weights of a part.
fn part4(part: Part, i: u32) -> vec4<f32> {
    return part.weights;
}
#endif

fn block_scale(block: Block) -> f32 {
    return block.scale;
}
