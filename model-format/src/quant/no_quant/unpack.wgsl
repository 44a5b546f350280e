// Plain f16 weights, read through the same interface as group_quant/unpack.wgsl: 32 weights are a block.
// The binding `q_weight: array<vec4<u32>>` ([rows, blocks, 4], eight f16 each; a ragged last block is padded with zeros)
// comes from the kernel that imports this.

struct Block { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

// Block `b` of row `row`, where a row has `blocks` of them.
fn load_block(row: u32, b: u32, blocks: u32) -> Block {
    let i = 4u * (row * blocks + b);
    return Block(q_weight[i], q_weight[i + 1u], q_weight[i + 2u], q_weight[i + 3u]);
}

// Weights 4 * i .. 4 * i + 4 of a block.
fn block4(block: Block, i: u32) -> vec4<f32> {
    var quad = block.a;
    switch i >> 1u {
        case 1u: { quad = block.b; }
        case 2u: { quad = block.c; }
        case 3u: { quad = block.d; }
        default: {}
    }
    let pair = select(quad.xy, quad.zw, (i & 1u) == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
