// weight[t] = one, or with EQUAL_NORM one over the mean square of token t's inputs. The first token of a window is multiplied by
// `first`.
#import invocation
#import reduce

struct Params { tokens: u32, cols: u32, window: u32, first: f32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [tokens, cols / 4]
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;      // [tokens]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let t = workgroup_index(workgroups);
    if (t >= params.tokens) {
        return;
    }
    var value = 1.0;
#ifdef EQUAL_NORM
    let quads = params.cols / 4u;
    var squares = 0.0;
    for (var q = invocation.lane; q < quads; q += WORKGROUP) {
        let v = x[t * quads + q];
        squares += dot(v, v);
    }
    let mean = workgroup_sum(invocation, squares) / f32(params.cols);
    if (mean > 0.0) {
        value = 1.0 / mean;
    }
#endif
    if (t % params.window == 0u) {
        value *= params.first;
    }
    if (invocation.lane == 0u) {
        weight[t] = value;
    }
}
