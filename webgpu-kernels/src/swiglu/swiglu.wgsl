// y[r, i] = silu(gate_up[r, i]) * gate_up[r, inner + i],  silu(v) = v / (1 + exp(-v))
#import invocation

struct Params { len: u32, inner: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<f32>;          // [rows, 2 * inner]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;          // [rows, inner], len values

@compute @workgroup_size(WORKGROUP)
fn main(workgroups: Workgroups, invocation: Invocation) {
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i < params.len) {
        let row = i / params.inner;
        let gate = gate_up[i + row * params.inner];
        let up = gate_up[i + (row + 1u) * params.inner];
        // exp(88) is the last finite one, and WGSL promises nothing beyond.
        y[i] = gate / (1.0 + exp(min(-gate, 88.0))) * up;
    }
}
