//! How often the loops of kernels run, which their compiler does not know: by kernel, in the order in which loops begin.

use webgpu_kernels::gpu::Traced;

/// Trips of each of `loops` loops of a dispatch whose subgroups have so many lanes. The error: nothing is known of it.
///
/// Counts are those of a whole workgroup's longest lane. A loop that a compiler unrolled is not among its loops, so what
/// follows the main loop (sums over a workgroup, stores of tiles) counts once where it is not named.
pub fn trips(traced: &Traced, loops: usize, lanes: u32) -> Result<Vec<f64>, String> {
    let param = |name: &str| f64::from(traced.param(name).unwrap_or_default());
    let constant = |name: &str| f64::from(traced.variant.constant(name).unwrap_or(1));
    let workgroup = constant("WORKGROUP");
    let subgroups = (workgroup / f64::from(lanes)).ceil();
    // Each of the first loops, and all that follow them.
    let (first, rest): (Vec<f64>, f64) = match traced.kernel.name {
        "gemv" | "gemv_add" | "gemv_scaled" | "gemv_rope" => {
            let has = |flag| traced.variant.has_flag(flag);
            let team = if has("TEAMS") { constant("SUBGROUP_MIN_SIZE") } else { workgroup };
            let rounds = (!has("ONCE")).then(|| (param("blocks") / team / constant("STEPS")).ceil());
            let sums = if has("SUBGROUPS") { subgroups } else { workgroup / constant("ROWS").max(1.0) / 8.0 };
            (rounds.into_iter().chain([sums]).collect(), 1.0)
        }
        // Steps along K, and quads of a step: half a block's.
        "gemm" => (vec![param("split_steps"), constant("QUADS") / 2.0], 1.0),
        // Steps along K, then each fragment's store by all lanes.
        "gemm_cooperative" => (vec![param("blocks") * constant("QUADS") / constant("STEP")], 256.0 / f64::from(lanes)),
        "gemm_join" => (vec![param("splits") - 1.0], 1.0),
        "gemm_narrow" => (vec![], (param("quads") / workgroup).ceil()),
        "rms_norm" | "add_rms_norm" => {
            let each = (param("cols") / workgroup).ceil();
            (vec![each, subgroups, each], 1.0)
        }
        "attention_reduce" => (vec![1.0, (param("splits") / 8.0).ceil()], 1.0),
        "attention_decode" => {
            let keys = param("split_keys").min(param("past_len") + 1.0);
            (vec![1.0, (keys / 128.0).ceil(), 8.0, 8.0, 2.0, constant("HEADS")], 1.0)
        }
        "attention_teams" => {
            let teams = workgroup / 2f64.powf(constant("TEAM_BITS"));
            (vec![(param("split_keys") / teams / constant("KEYS")).ceil()], 1.0)
        }
        // Tiles of 64 keys up to the diagonal, on average over the rows; in each, steps along the head's dims of 4 quads, for
        // which 128 lanes fetch queries, and for each half of the keys and 64 dims a fetch of values and its products.
        "attention_tile" => {
            let keys = param("past_len") + param("rows") / 2.0;
            let fetches = 8.0 * constant("SET") * constant("SETS") * 4.0 / 128.0;
            let steps = [(keys / 64.0 + 0.5).ceil(), constant("EIGHTS") / 2.0];
            // A fetch of one trip is no loop.
            let fetches = (fetches > 1.0).then_some(fetches);
            let values = [2.0, 8.0].repeat(2 * constant("CHUNKS") as usize);
            (steps.into_iter().chain(fetches).chain([4.0]).chain(values).collect(), 1.0)
        }
        // One short loop, over what a workgroup has left to join.
        "argmax" | "argmax_join" | "embedding" | "select_rows" => (vec![], 1.0),
        _ if loops == 0 => (vec![], 1.0),
        other => return Err(format!("the cost model does not know how often the {loops} loops of `{other}` run")),
    };
    Ok(first.into_iter().chain(std::iter::repeat(rest)).take(loops).collect())
}
