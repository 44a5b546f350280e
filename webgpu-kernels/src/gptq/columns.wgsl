// GPTQ's inner loop: rounds 32 columns one after the other, with a lane per row. Later columns among these compensate the error of
// each, and with CORRECTED the drift of its input. rank_update does the same for all other columns.
#import invocation

struct Params { rows: u32, cols: u32, start: u32, groups: u32, group_len: u32, max_code: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;            // [rows, cols], columns in the order `perm`
@group(0) @binding(2) var<storage, read> factor: array<f32>;             // [32, cols], rows from `start` on
@group(0) @binding(3) var<storage, read> correction: array<f32>;         // [32, cols], with CORRECTED
@group(0) @binding(4) var<storage, read> perm: array<u32>;               // [cols]
@group(0) @binding(5) var<storage, read> grid: array<vec2<f32>>;         // [rows, groups]: scale, zero
@group(0) @binding(6) var<storage, read_write> codes: array<f32>;        // [rows, cols], in the order of the matrix
@group(0) @binding(7) var<storage, read_write> errors: array<f32>;       // [rows, 32]
@group(0) @binding(8) var<storage, read_write> unrounded: array<f32>;    // [rows, 32], negated weights, with CORRECTED

// The factor on and above the diagonal, the transpose of the correction below it.
var<workgroup> factors: array<f32, BLOCK * BLOCK>;
var<workgroup> values: array<f32, BLOCK * LANES>;                              // [column, lane]

@compute @workgroup_size(LANES)
fn main(
#import arguments
) {
#import from_arguments
    let lane = invocation.lane;
    for (var i = lane; i < BLOCK * BLOCK; i += LANES) {
        let k = i / BLOCK;
        let j = i % BLOCK;
        if (j >= k) {
            factors[i] = factor[k * params.cols + params.start + j];
        }
#ifdef CORRECTED
        if (j < k) {
            factors[i] = correction[j * params.cols + params.start + k];
        }
#endif
    }
    workgroupBarrier();
    let row = workgroup_index(workgroups) * LANES + lane;
    if (row >= params.rows) {
        return;
    }
    for (var k = 0u; k < BLOCK; k++) {
        values[k * LANES + lane] = weights[row * params.cols + params.start + k];
    }
    for (var k = 0u; k < BLOCK; k++) {
        let column = perm[params.start + k];
        let scale_zero = grid[row * params.groups + column / params.group_len];
        let weight = values[k * LANES + lane];
        let code = clamp(round(weight / scale_zero.x) + scale_zero.y, 0.0, f32(params.max_code));
        codes[row * params.cols + column] = code;
        let error = (weight - (code - scale_zero.y) * scale_zero.x) / factors[k * BLOCK + k];
        errors[row * BLOCK + k] = error;
#ifdef CORRECTED
        unrounded[row * BLOCK + k] = -weight;
#endif
        for (var j = k + 1u; j < BLOCK; j++) {
            var value = values[j * LANES + lane] - error * factors[k * BLOCK + j];
#ifdef CORRECTED
            value += weight * factors[j * BLOCK + k];
#endif
            values[j * LANES + lane] = value;
        }
    }
}
