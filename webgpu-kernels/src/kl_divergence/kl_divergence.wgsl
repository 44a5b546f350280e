// divergences[r] = sum over c of p[c] * (ln p[c] - ln q[c]), where p = softmax(x[r, :]) and q = softmax(y[r, :])
// One workgroup per row. It reads the row twice: for the largest logits, then for sums relative to them.
#import invocation

struct Params { rows: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                     // [rows, cols]
@group(0) @binding(2) var<storage, read> y: array<f32>;                     // [rows, cols]
@group(0) @binding(3) var<storage, read_write> divergences: array<f32>;     // [rows]

// The largest logits of x and y; then the sums of their exponentials, and the sum of exp(x) * (x - y).
var<workgroup> of_x: array<f32, WORKGROUP>;
var<workgroup> of_y: array<f32, WORKGROUP>;
var<workgroup> of_both: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let row = workgroup_index(workgroups);
    if (row >= params.rows) {
        return;
    }
    let lane = invocation.lane;
    let first = row * params.cols;
    // Begin with the row's first values, which are finite.
    var top_x = x[first];
    var top_y = y[first];
    for (var c = lane; c < params.cols; c += WORKGROUP) {
        top_x = max(top_x, x[first + c]);
        top_y = max(top_y, y[first + c]);
    }
    of_x[lane] = top_x;
    of_y[lane] = top_y;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            of_x[lane] = max(of_x[lane], of_x[lane + reach]);
            of_y[lane] = max(of_y[lane], of_y[lane + reach]);
        }
        workgroupBarrier();
    }
    top_x = of_x[0];
    top_y = of_y[0];
    workgroupBarrier();

    var sum_x = 0.0;
    var sum_y = 0.0;
    var sum_both = 0.0;
    for (var c = lane; c < params.cols; c += WORKGROUP) {
        let below_x = x[first + c] - top_x;
        let below_y = y[first + c] - top_y;
        let weight = exp(below_x);
        sum_x += weight;
        sum_y += exp(below_y);
        sum_both += weight * (below_x - below_y);
    }
    of_x[lane] = sum_x;
    of_y[lane] = sum_y;
    of_both[lane] = sum_both;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            of_x[lane] += of_x[lane + reach];
            of_y[lane] += of_y[lane + reach];
            of_both[lane] += of_both[lane + reach];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        divergences[row] = of_both[0] / of_x[0] - log(of_x[0]) + log(of_y[0]);
    }
}
