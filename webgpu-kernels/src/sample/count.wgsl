// Adds the token of a row to the row's history. One lane.
#import invocation

struct Params { row: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> y: array<u32>;                    // [rows]
@group(0) @binding(2) var<storage, read_write> history: array<vec2<u32>>;  // [cols] count, bias

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    if (workgroup_index(workgroups) == 0u && invocation.lane == 0u) {
        history[y[params.row]].x += 1u;
    }
}
