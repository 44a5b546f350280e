// y[r, c] -= sum over k of a[r, k] * b[k, c] for the columns from `first` on.
// A workgroup of 8 x 8 lanes computes 32 rows of 64 columns, each lane 4 rows of two quads. `depth` is a multiple of 32.
#import invocation

struct Params { rows: u32, cols: u32, first: u32, depth: u32, tiles_j: u32, tiles: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;            // [rows, depth / 4]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;            // [depth, cols / 4]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;      // [rows, cols / 4]

const STEP: u32 = 32u;

var<workgroup> tile_a: array<vec4<f32>, 32 * 8>;                         // [row, k / 4]
var<workgroup> tile_b: array<vec4<f32>, 32 * 16>;                        // [k, column / 4]

@compute @workgroup_size(8, 8)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.tiles) {
        return;
    }
    let lane = invocation.lane;
    let first_row = group / params.tiles_j * 32u;
    let first_quad = params.first / 4u + group % params.tiles_j * 16u;
    let quads = params.cols / 4u;
    let lane_i = lane / 8u;
    let lane_j = lane % 8u;
#for i in 0..4
    var low$i = vec4<f32>(0.0);
    var high$i = vec4<f32>(0.0);
#endfor
    for (var start = 0u; start < params.depth; start += STEP) {
        for (var q = lane; q < 32u * 8u; q += 64u) {
            let row = first_row + q / 8u;
            var value = vec4<f32>(0.0);
            if (row < params.rows) {
                value = a[row * (params.depth / 4u) + start / 4u + q % 8u];
            }
            tile_a[q] = value;
        }
        for (var q = lane; q < 32u * 16u; q += 64u) {
            let quad = first_quad + q % 16u;
            var value = vec4<f32>(0.0);
            if (quad < quads) {
                value = b[(start + q / 16u) * quads + quad];
            }
            tile_b[q] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP / 4u; k++) {
#for i in 0..4
            let a$i = tile_a[(4u * lane_i + $iu) * 8u + k];
#endfor
#for e in 0..4
            let low_b$e = tile_b[(4u * k + $eu) * 16u + lane_j];
            let high_b$e = tile_b[(4u * k + $eu) * 16u + lane_j + 8u];
#for i in 0..4
            low$i += a$i[$e] * low_b$e;
            high$i += a$i[$e] * high_b$e;
#endfor
#endfor
        }
        workgroupBarrier();
    }
#for i in 0..4
    if (first_row + 4u * lane_i + $iu < params.rows) {
        let at = (first_row + 4u * lane_i + $iu) * quads + first_quad + lane_j;
        if (first_quad + lane_j < quads) {
            y[at] -= low$i;
        }
        if (first_quad + lane_j + 8u < quads) {
            y[at + 8u] -= high$i;
        }
    }
#endfor
}
