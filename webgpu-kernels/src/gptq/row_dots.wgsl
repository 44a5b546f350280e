// dots[r] = sum over c of a[r, c] * b[r, c], with a lane per row.
#import invocation

struct Params { rows: u32, cols: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;            // [rows, cols / 4]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;            // [rows, cols / 4]
@group(0) @binding(3) var<storage, read_write> dots: array<f32>;         // [rows]

@compute @workgroup_size(64)
fn main(
#import arguments
) {
#import from_arguments
    let row = workgroup_index(workgroups) * 64u + invocation.lane;
    if (row >= params.rows) {
        return;
    }
    let quads = params.cols / 4u;
    var sum = 0.0;
    // Partial sums keep the rounding error of long rows small.
    for (var start = 0u; start < quads; start += 16u) {
        var piece = vec4<f32>(0.0);
        for (var q = start; q < min(start + 16u, quads); q++) {
            piece += a[row * quads + q] * b[row * quads + q];
        }
        sum += piece.x + piece.y + piece.z + piece.w;
    }
    dots[row] = sum;
}
