// Reads unquantized weights through the interface of group_quant/unpack.wgsl. A block has 32 weights, or another number
// chosen by the kernel. The importing kernel declares the constant BLOCK_WORDS and the binding `q_weight: array<Words>`
// [rows, blocks, BLOCK_WORDS]. A vector of four words has eight f16 weights, or with PLAIN_F32 four f32 weights. An
// incomplete last block is padded with zeros.

alias Words = vec4<u32>;

struct Block { words: array<vec4<u32>, BLOCK_WORDS> }

// Block `b` of row `row`. A row has `blocks` blocks.
fn load_block(row: u32, b: u32, blocks: u32) -> Block {
    let first = (row * blocks + b) * BLOCK_WORDS;
    var block: Block;
#for i in 0..BLOCK_WORDS
    block.words[$i] = q_weight[first + $iu];
#endfor
    return block;
}

// Weights 4 * i .. 4 * i + 4 of a block.
fn block4(block: Block, i: u32) -> vec4<f32> {
#ifdef PLAIN_F32
    return bitcast<vec4<f32>>(block.words[i]);
#else
    let words = block.words[i / 2u];
    let pair = select(words.xy, words.zw, (i & 1u) == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
#endif
}

// The factors of a dot product, see group_quant/unpack.wgsl. Without quantization, the weights need no scaling.
fn spread(x: vec4<f32>) -> vec4<f32> {
    return x;
}

fn raw4(block: Block, i: u32) -> vec4<f32> {
    return block4(block, i);
}

fn block_scale(block: Block) -> f32 {
    return 1.0;
}

// PART_QUADS quads of weights, in the form loaded from memory.
struct Part { words: vec4<u32> }

// Part `part` of block `b` of row `row`.
fn load_part(row: u32, b: u32, part: u32, blocks: u32) -> Part {
    return Part(q_weight[(row * blocks + b) * BLOCK_WORDS + part]);
}

// Weights 4 * i .. 4 * i + 4 of a part.
fn part4(part: Part, i: u32) -> vec4<f32> {
#ifdef PLAIN_F32
    return bitcast<vec4<f32>>(part.words);
#else
    let pair = select(part.words.xy, part.words.zw, i == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
#endif
}
