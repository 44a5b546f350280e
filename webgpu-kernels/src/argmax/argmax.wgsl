// y[r, s] = argmax_c x[r, c] over the SPAN columns of split s. The lowest c wins a tie. The result is 0 if all values are NaN.
// With JOIN there is one split: the columns in `candidates`.
// One workgroup per row and split.
#import invocation

struct Params { rows: u32, cols: u32, splits: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [rows, cols]
#ifdef JOIN
@group(0) @binding(2) var<storage, read_write> y: array<u32>;          // [rows]
@group(0) @binding(3) var<storage, read> candidates: array<u32>;       // [rows, splits]
#else
@group(0) @binding(2) var<storage, read_write> y: array<u32>;          // [rows, splits]
#endif

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> columns: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
#ifdef JOIN
    let row = group;
#else
    let row = group / params.splits;
#endif
    if (row >= params.rows) {
        return;
    }
    let lane = invocation.lane;
    // The lowest f32. NaN compares as not larger, so it never replaces this.
    var best = -3.4028234e38;
    var column = params.cols;
#ifdef JOIN
    for (var i = lane; i < params.splits; i += WORKGROUP) {
        let c = candidates[row * params.splits + i];
        let v = x[row * params.cols + c];
        if (v > best) {
            best = v;
            column = c;
        }
    }
#else
    let first = group % params.splits * SPAN + lane;
#for i in 0..STEPS
    // A column beyond the last is the last one again.
    let c$i = min(first + $iu * WORKGROUP, params.cols - 1u);
    let v$i = x[row * params.cols + c$i];
#endfor
#for i in 0..STEPS
    if (v$i > best) {
        best = v$i;
        column = c$i;
    }
#endfor
#endif
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
        y[group] = select(columns[0], 0u, columns[0] == params.cols);
    }
}
