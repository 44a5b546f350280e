// y[t, :] = scale * table[tokens[t], :]
// One lane per block. The dispatch of a slice skips tokens whose rows are in other slices of the table.
#import invocation
#import unpack

struct Params { tokens: u32, first_row: u32, rows: u32, cols: u32, blocks: u32, scale: f32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, blocks], two f16 to a word
@group(0) @binding(3) var<storage, read> tokens: array<u32>;           // [tokens]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // [tokens, cols]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    let t = i / params.blocks;
    let b = i - t * params.blocks;
    if (t >= params.tokens) {
        return;
    }
    // Rows before the slice wrap to large numbers.
    let row = tokens[t] - params.first_row;
    if (row >= params.rows) {
        return;
    }
    let block = load_block(row, b, params.blocks);
    for (var quad = 0u; quad < QUADS; quad++) {
        let w = params.scale * block4(block, quad);
        let c = 4u * (b * QUADS + quad);
        for (var j = 0u; j < 4u; j++) {
            if (c + j < params.cols) {
                y[t * params.cols + c + j] = w[j];
            }
        }
    }
}
