// y[i] = sources[i], or chosen[row] if sources[i] is CHOSEN | row. One lane per token.
#import invocation

struct Params { count: u32, chosen_count: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sources: array<u32>;          // [count]
@group(0) @binding(2) var<storage, read> chosen: array<u32>;           // [chosen_count]
@group(0) @binding(3) var<storage, read_write> y: array<u32>;          // [count]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let i = workgroup_index(workgroups) * WORKGROUP + invocation.lane;
    if (i >= params.count) {
        return;
    }
    var id = sources[i];
    if ((id & CHOSEN) != 0u) {
        // A row beyond the last is the last one.
        id = chosen[min(id & ~CHOSEN, params.chosen_count - 1u)];
    }
    y[i] = id;
}
