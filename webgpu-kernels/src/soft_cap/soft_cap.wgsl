// x[i] = cap * tanh(x[i] / cap)
#import invocation
#import soft_cap

struct Params { len: u32, cap: f32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;          // [len]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i < params.len) {
        x[i] = soft_cap(vec4<f32>(x[i]), params.cap).x;
    }
}
