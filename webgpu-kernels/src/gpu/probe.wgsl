// Writes the size of each lane's subgroup, and the lane's number in its workgroup by its subgroup's id.
#import invocation

struct Params { groups: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> sizes: array<u32>;      // [groups, WORKGROUP]
@group(0) @binding(2) var<storage, read_write> numbers: array<u32>;    // [groups, WORKGROUP]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let at = group * WORKGROUP + local_index;
    sizes[at] = subgroup_size;
    numbers[at] = invocation.subgroup * subgroup_size + invocation.subgroup_lane;
}
