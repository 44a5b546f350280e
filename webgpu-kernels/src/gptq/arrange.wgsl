// y[i, j] = scale * sum over s of x[s, r, c], where a flag maps (i, j) to (r, c). x and y may be
// pieces of a matrix, with some rows from `first` on. Entries of y whose source is not in x stay unchanged.
#import invocation

struct Params {
    first: u32, rows: u32, cols: u32, stride: u32, x_first: u32, x_rows: u32, x_stride: u32, splits: u32, scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                  // [splits, x_rows, x_stride]
@group(0) @binding(2) var<storage, read> perm: array<u32>;               // with PERMUTED and COLUMNS_PERMUTED
@group(0) @binding(3) var<storage, read_write> y: array<f32>;            // [rows, stride], cols of a row

@compute @workgroup_size(256)
fn main(
#import arguments
) {
#import from_arguments
    let at = workgroup_index(workgroups) * 256u + invocation.lane;
    if (at >= params.rows * params.cols) {
        return;
    }
    let i = params.first + at / params.cols;
    let j = at % params.cols;
#ifdef SYMMETRIC
    let r = max(i, j);
    let c = min(i, j);
#endif
#ifdef TRANSPOSED
    let r = j;
    let c = i;
#endif
#ifdef PERMUTED
    let r = perm[i];
    let c = perm[j];
#endif
#ifdef COLUMNS_PERMUTED
    let r = i;
    let c = perm[j];
#endif
#ifdef PLAIN
    let r = i;
    let c = j;
#endif
#ifdef UPPER
    let r = i;
    let c = j;
#endif
    if (r < params.x_first || r >= params.x_first + params.x_rows) {
        return;
    }
    var sum = 0.0;
    for (var s = 0u; s < params.splits; s++) {
        sum += x[(s * params.x_rows + r - params.x_first) * params.x_stride + c];
    }
#ifdef UPPER
    // Zero on and below the diagonal.
    sum = select(0.0, sum, c > r);
#endif
    y[at / params.cols * params.stride + j] = params.scale * sum;
}
