// y[i] = x[i]
#import invocation

struct Params { quads: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;          // [quads]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>;    // [quads]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i < params.quads) {
        y[i] = x[i];
    }
}
