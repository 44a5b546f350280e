//! Trip counts of the loops in each kernel. They depend on parameters that the compiler does not know.

use webgpu_kernels::gpu::Traced;

/// Trip counts of the first `loops` loops of a dispatch, in the order in which they begin. `lanes` is the subgroup
/// size. The error names a kernel without known trip counts.
///
/// A count is the maximum over the lanes of a workgroup. Unrolled loops do not appear in `loops`. Loops after the main
/// loop (workgroup reductions, stores of tiles) therefore count as one trip unless listed here.
pub fn trips(traced: &Traced, loops: usize, lanes: u32) -> Result<Vec<f64>, String> {
    let param = |name: &str| f64::from(traced.param(name).unwrap_or_default());
    let constant = |name: &str| f64::from(traced.variant.constant(name).unwrap_or(1));
    let workgroup = constant("WORKGROUP");
    let subgroups = (workgroup / f64::from(lanes)).ceil();
    // Keys of a split of the average row: a dispatch's work is 4 operations per row, key, head and dimension.
    let split_keys = || {
        let per_key = 4.0 * param("rows") * param("heads") * constant("HEAD_DIM");
        (traced.work as f64 / per_key / param("splits")).ceil()
    };
    // The counts of the first loops, and the count of each remaining loop.
    let (first, rest): (Vec<f64>, f64) = match traced.kernel.name {
        "gemv" | "gemv_add" | "gemv_scaled" | "gemv_rope" => {
            let has = |flag| traced.variant.has_flag(flag);
            let team = if has("TEAMS") { constant("SUBGROUP_MIN_SIZE") } else { workgroup };
            let rounds = (!has("ONCE")).then(|| (param("blocks") / team / constant("STEPS")).ceil());
            let sums = if has("SUBGROUPS") { subgroups } else { workgroup / constant("ROWS").max(1.0) / 8.0 };
            (rounds.into_iter().chain([sums]).collect(), 1.0)
        }
        // Steps along K, then the quads of a step, half of a block's quads.
        "gemm" => (vec![param("split_steps"), constant("QUADS") / 2.0], 1.0),
        // Steps along K, then each fragment's store by all lanes.
        "gemm_cooperative" => {
            let blocks = param("range_blocks").min(param("blocks"));
            (vec![blocks * constant("QUADS") / constant("STEP")], 256.0 / f64::from(lanes))
        }
        "gemm_few" => {
            let rounds = (param("range_blocks") / constant("STEP_BLOCKS") / constant("DEPTH")).ceil();
            (vec![rounds], (256.0 / constant("WARPS_K") / f64::from(lanes)).max(1.0))
        }
        "gemm_join" => (vec![param("splits") - 1.0], 1.0),
        "gemm_narrow" => (vec![], (param("quads") / workgroup).ceil()),
        "rms_norm" | "add_rms_norm" => {
            let each = (param("cols") / workgroup).ceil();
            (vec![each, subgroups, each], 1.0)
        }
        "attention_reduce" => (vec![1.0, (param("splits") / 8.0).ceil()], 1.0),
        "attention_decode" => (vec![1.0, (split_keys() / 128.0).ceil(), 8.0, 8.0, 2.0, constant("HEADS")], 1.0),
        "attention_teams" => {
            let teams = workgroup / 2f64.powf(constant("TEAM_BITS"));
            (vec![(split_keys() / teams / constant("KEYS")).ceil()], 1.0)
        }
        // Tiles of 64 keys up to the diagonal, averaged over the rows. In each tile: steps of 4 quads along the head's
        // dimensions, in which 128 lanes fetch queries; then, for each half of the keys and each 64 dimensions, a fetch
        // of values and the products.
        "attention_tile" => {
            let keys = param("past_len") + param("rows") / 2.0;
            let fetches = 8.0 * constant("SET") * constant("SETS") * 4.0 / 128.0;
            let steps = [(keys / 64.0 + 0.5).ceil(), constant("EIGHTS") / 2.0];
            // A fetch of one trip compiles to straight code, not to a loop.
            let fetches = (fetches > 1.0).then_some(fetches);
            let values = [2.0, 8.0].repeat(2 * constant("CHUNKS") as usize);
            (steps.into_iter().chain(fetches).chain([4.0]).chain(values).collect(), 1.0)
        }
        // At most a short loop over the workgroup's reduction.
        "argmax" | "argmax_join" | "embedding" | "select_rows" => (vec![], 1.0),
        _ if loops == 0 => (vec![], 1.0),
        other => return Err(format!("the cost model has no trip counts for the {loops} loops of `{other}`")),
    };
    Ok(first.into_iter().chain(std::iter::repeat(rest)).take(loops).collect())
}
