// Reads group-quantized weights. mod.rs in this folder defines the layout.
// The importing kernel declares the constants BITS, GROUP_SIZE and MAX_INT, and two bindings: `q_weight: array<Words>`
// [rows, blocks], where a block is a group of four words, half a group (HALVES) or a quarter (QUARTERS), and
// `q_scale: array<u32>` [rows, groups] in f16, two per word. With OWN_LOADS, the kernel itself loads from them.

const CODES_PER_WORD: u32 = 32u / BITS;
const CODE_MASK: u32 = (1u << BITS) - 1u;

#ifdef QUARTERS
// A block is one of a group's four words.
alias Words = u32;
const BLOCKS_PER_GROUP: u32 = 4u;
#else
#ifdef HALVES
// A block is half a group.
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
// Block `b` of row `row`. A row has `blocks` blocks.
fn load_block(row: u32, b: u32, blocks: u32) -> Block {
    let i = row * blocks + b;
    return Block(q_weight[i], group_scale(i / BLOCKS_PER_GROUP));
}

fn group_scale(group: u32) -> f32 {
    let pair = unpack2x16float(q_scale[group >> 1u]);
    return select(pair.x, pair.y, (group & 1u) == 1u);
}
#endif

// The dot product of a block and x is block_scale(block) * sum over i of dot(raw4(block, i), spread(x4)). The scale is
// applied once per block, and spread(x4) is computed once for many rows.

#ifdef EIGHT_NIBBLES
// Converts nibbles to floats without conversion instructions: OR-ing the j-th nibble, in place, into the mantissa of
// 2^23 gives 2^23 + code * 16^j. Division of x by 16^j compensates the factor. All steps are exact.
const SPREAD: vec4<f32> = vec4<f32>(1.0, 1.0 / 16.0, 1.0 / 256.0, 1.0 / 4096.0);
const MAGIC: vec4<f32> = vec4<f32>(8388608.0) + f32(MAX_INT) / SPREAD;

fn spread(x: vec4<f32>) -> vec4<f32> {
    return x * SPREAD;
}

// Weights 4 * i .. 4 * i + 4 without the scale, divided by SPREAD.
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
// Codes of weights 8 * i .. 8 * i + 8 as bytes (MAX_INT is not subtracted): the even codes, then the odd codes.
fn code_bytes(block: Block, i: u32) -> vec2<u32> {
#ifdef QUARTERS
    return bytes_of(block.words);
#else
    return bytes_of(block.words[i]);
#endif
}

// The eight codes of a word: even, then odd.
fn bytes_of(word: u32) -> vec2<u32> {
    return vec2<u32>(word, word >> 4u) & vec2<u32>(0x0f0f0f0fu);
}
#endif

#ifndef OWN_LOADS
// PART_QUADS quads of weights, in the form loaded from memory.
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

// Weights 4 * i .. 4 * i + 4 without the scale.
fn raw4(block: Block, i: u32) -> vec4<f32> {
    // Four codes may be in two words if the number of codes per word is not a multiple of four.
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
