// x[r, h, c] = x[r, h, c] / sqrt(mean_c(x[r, h, c]^2) + eps) * weight[c] for the query and key heads h of [rows, q | k | v].
// Queries and keys have weights of their own. One workgroup per row and head.
#import invocation
#import reduce

struct Params { heads: u32, kv_heads: u32, head_dim: u32, groups: u32, eps: f32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> qkv: array<f32>;        // [rows, heads + 2 * kv_heads, head_dim]
@group(0) @binding(2) var<storage, read> query: array<f32>;            // [head_dim]
@group(0) @binding(3) var<storage, read> key: array<f32>;              // [head_dim]

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    let group = workgroup_index(workgroups);
    if (group >= params.groups) {
        return;
    }
    let normed = params.heads + params.kv_heads;
    let head = group % normed;
    let first = (group / normed * (normed + params.kv_heads) + head) * params.head_dim;
    var sum = 0.0;
    for (var c = invocation.lane; c < params.head_dim; c += WORKGROUP) {
        let v = qkv[first + c];
        sum += v * v;
    }
    sum = workgroup_sum(invocation, sum);
    let factor = 1.0 / sqrt(sum / f32(params.head_dim) + params.eps);
    for (var c = invocation.lane; c < params.head_dim; c += WORKGROUP) {
        var weight = 0.0;
        if (head < params.heads) {
            weight = query[c];
        } else {
            weight = key[c];
        }
        qkv[first + c] *= factor * weight;
    }
}
