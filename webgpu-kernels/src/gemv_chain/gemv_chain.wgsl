// One row through the end of a decoder layer and the beginning of the next one, in one dispatch. Each stage needs outputs of the stage
// before it, and has workgroups of its own:
//
//   stage  file            workgroups  output
//   0      out.wgsl        groups0     u[n] = sum[n] + sum over k of x[k] * w0[n, k]
//   1      gate_up.wgsl    groups1     v[i] = silu(g[i]) * g[rows1 / 2 + i], g[n] = sum over k of normed(u * norm0)[k] * w1[n, k]
//   2      down.wgsl       groups2     sum[n] = u[n] + sum over k of v[k] * w2[n, k]
//   3      qkv.wgsl        groups3     queries, keys and values: sum over k of normed(sum * norm2)[k] * w3[n, k], the former two rotated
//   4      attention.wgsl  groups4     attention of heads over a range of keys; the new key and value are also stored in the pool
//   5      join.wgsl       groups5     attention of heads over all ranges, if there are several
//
// `x` is the output of the layer's attention, `sum` the residual stream, and normed(a * norm) is a * norm / sqrt(mean of a^2 + eps).
// Stages 0 to 3 share product.wgsl. Three kernels have some of the stages:
//
//   gemv_chain             0 to 2  Stage 2 also writes y = sum * norm2, and partial sums of sum^2 to `squares`.
//   gemv_chain_attention   0 to 5  With ATTENTION.
//   gemv_chain_start       3 to 5  With START and ATTENTION, for the first layer. Here `x` is the residual stream.
//
// A workgroup takes the next number from a counter in `links`. The first groups0 numbers are stage 0, the next groups1 are stage 1, and so
// on. A workgroup loads its first weights (or keys and values), waits for its inputs, computes, and publishes its outputs in `links`: see
// links.wgsl. So the memory stays busy while workgroups wait; between two dispatches it is idle.
//
// A workgroup waits only for workgroups with smaller numbers. Those have started, because they took their numbers. So no start order is
// assumed, only forward progress: a workgroup that has started goes on while others poll (see `Caps`). On a device without forward progress
// each stage is a dispatch of its own: numbers go on from one dispatch to the next, and each workgroup finds all its inputs.
#import invocation
#import unpack
#import fixed_point
#import subgroup_sums
#import activation
#ifdef ATTENTION
#import team_attention
#endif

struct Params {
#for t in 0..4
    rows$t: u32, blocks$t: u32, groups$t: u32, passes$t: u32,
#endfor
    eps: f32, most_polls: u32, stale_words: u32,
    heads: u32, kv_heads: u32,
    begin: u32, splits: u32, split_keys: u32, groups4: u32, groups5: u32, scale: f32,
}

// A block is half a group: 16 weights of a row.
@group(0) @binding(0) var<uniform> params: Params;
#ifdef START
@group(0) @binding(1) var<storage, read> q_weight3: array<Words>;             // [rows3, blocks3], see unpack
@group(0) @binding(2) var<storage, read> q_scale3: array<u32>;                // [rows3, blocks3 / 2], two f16 to a word
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;                 // [4 * blocks3]
@group(0) @binding(4) var<storage, read> norm2: array<vec4<f32>>;             // [4 * blocks3]
@group(0) @binding(5) var<storage, read_write> links: array<atomic<u32>>;     // this dispatch's links, see links.wgsl
@group(0) @binding(6) var<storage, read_write> stale: array<atomic<u32>>;     // the links of the dispatches before and after this one
@group(0) @binding(7) var<storage, read> rope: array<vec2<f32>>;              // [positions, HEAD_DIM / 2]
@group(0) @binding(8) var<storage, read_write> attended: array<vec4<f32>>;    // [heads, HEAD_DIM / 4]
@group(0) @binding(9) var<storage, read_write> kv: array<Stored8>;            // [pages, 2, kv_heads, KV_PAGE] rows, see kv.wgsl
@group(0) @binding(10) var<storage, read> rows: array<u32>;                   // one row, see kv_pages.wgsl
#else
@group(0) @binding(1) var<storage, read> q_weight0: array<Words>;             // [rows0, blocks0], see unpack
@group(0) @binding(2) var<storage, read> q_scale0: array<u32>;                // [rows0, blocks0 / 2], two f16 to a word
@group(0) @binding(3) var<storage, read> q_weight1: array<Words>;             // [rows1, blocks1]
@group(0) @binding(4) var<storage, read> q_scale1: array<u32>;                // [rows1, blocks1 / 2]
@group(0) @binding(5) var<storage, read> q_weight2: array<Words>;             // [rows2, blocks2]
@group(0) @binding(6) var<storage, read> q_scale2: array<u32>;                // [rows2, blocks2 / 2]
@group(0) @binding(7) var<storage, read> x: array<vec4<f32>>;                 // [4 * blocks0]
@group(0) @binding(8) var<storage, read> norm0: array<vec4<f32>>;             // [4 * blocks1]
@group(0) @binding(9) var<storage, read> norm2: array<vec4<f32>>;             // [rows2 / 4]
@group(0) @binding(10) var<storage, read_write> sum: array<f32>;              // [rows2]
@group(0) @binding(11) var<storage, read_write> links: array<atomic<u32>>;    // as above
@group(0) @binding(12) var<storage, read_write> stale: array<atomic<u32>>;
#ifdef ATTENTION
@group(0) @binding(13) var<storage, read> q_weight3: array<Words>;            // as above
@group(0) @binding(14) var<storage, read> q_scale3: array<u32>;
@group(0) @binding(15) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(16) var<storage, read_write> attended: array<vec4<f32>>;
@group(0) @binding(17) var<storage, read_write> kv: array<Stored8>;
@group(0) @binding(18) var<storage, read> rows: array<u32>;
#else
@group(0) @binding(13) var<storage, read_write> y: array<f32>;                // [rows2]
@group(0) @binding(14) var<storage, read_write> squares: array<f32>;          // [groups2]
#endif
#endif

// The number of this workgroup.
var<workgroup> ticket: u32;

// Runs the stage of workgroup `number`. FIRST and STAGES are the first product and the end of the products.
fn run(number: u32, invocation: Invocation) {
    var group = number;
#for t in FIRST..STAGES
    if (group < params.groups$t) {
        product$t(group, invocation);
        return;
    }
    group -= params.groups$t;
#endfor
#ifdef ATTENTION
    if (group < params.groups4) {
        attention_stage(group, invocation);
        return;
    }
    join_stage(group - params.groups4, invocation);
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(
#import arguments
) {
#import from_arguments
    if (invocation.lane == 0u) {
        // The counter begins at PENDING, the largest number.
        ticket = atomicAdd(&links[TICKET], 1u) + 1u;
    }
    let number = workgroupUniformLoad(&ticket);
    run(number, invocation);
    // Keep the flag of the dispatch before. Before the work this load would delay every workgroup.
    if (number == 0u && invocation.lane == 0u && atomicLoad(&stale[EXPIRED]) != 0u) {
        atomicStore(&links[EXPIRED], 1u);
    }
}
