// y[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i]
#import invocation
#import activation

struct Params { len: u32, inner: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<f32>;          // [rows, 2 * inner]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;          // [rows, inner], len values

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i < params.len) {
        let row = i / params.inner;
        y[i] = activation(gate_up[i + row * params.inner]) * gate_up[i + (row + 1u) * params.inner];
    }
}
