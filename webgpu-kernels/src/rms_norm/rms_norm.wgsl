// y[r, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + eps) * weight[c]. With ADD, x += addend comes first.
// One workgroup per row.
#import invocation
#import reduce

struct Params { rows: u32, cols: u32, eps: f32 }

@group(0) @binding(0) var<uniform> params: Params;
#ifdef ADD
@group(0) @binding(1) var<storage, read_write> x: array<f32>;          // [rows, cols]
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [rows, cols]
#endif
@group(0) @binding(2) var<storage, read> weight: array<f32>;           // [cols]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;          // [rows, cols]
#ifdef ADD
@group(0) @binding(4) var<storage, read> addend: array<f32>;           // [rows, cols]
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let row = workgroup_index(workgroups);
    if (row >= params.rows) {
        return;
    }
    let first = row * params.cols;
    var sum = 0.0;
    for (var c = invocation.lane; c < params.cols; c += WORKGROUP) {
#ifdef ADD
        let v = x[first + c] + addend[first + c];
        x[first + c] = v;
#else
        let v = x[first + c];
#endif
        sum += v * v;
    }
    sum = workgroup_sum(invocation, sum);
    let factor = 1.0 / sqrt(sum / f32(params.cols) + params.eps);
    // Each lane reads only values that it wrote itself, so no barrier is needed.
    for (var c = invocation.lane; c < params.cols; c += WORKGROUP) {
        y[first + c] = x[first + c] * factor * weight[c];
    }
}
