// y[r] = argmax_c x[r, c], the lowest such c.
// One workgroup per row.
#import invocation

struct Params { rows: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [rows, cols]
@group(0) @binding(2) var<storage, read_write> y: array<u32>;          // [rows]

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> columns: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(invocation: Invocation) {
    let row = workgroup_index(invocation);
    if (row >= params.rows) {
        return;
    }
    let lane = invocation.lane;
    // The lowest f32. NaN compares as not larger, so it never replaces this.
    var best = -3.4028234e38;
    var column = params.cols;
    for (var c = lane; c < params.cols; c += WORKGROUP) {
        let v = x[row * params.cols + c];
        if (v > best) {
            best = v;
            column = c;
        }
    }
    values[lane] = best;
    columns[lane] = column;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            let v = values[lane + reach];
            let c = columns[lane + reach];
            if (v > values[lane] || (v == values[lane] && c < columns[lane])) {
                values[lane] = v;
                columns[lane] = c;
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        y[row] = select(columns[0], 0u, columns[0] == params.cols);
    }
}
