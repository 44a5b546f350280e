//! [`Program`]: counts the cycles of a subgroup on each unit of a SIMD, from RADV's assembly.
//!
//! The costs per instruction are those of RADV's compiler ACO (aco_statistics.cpp of Mesa 25). The trip counts of loops
//! are exact (`trips.rs`). ACO's own totals are unusable: they assume 8 trips per loop and that every branch is taken
//! half the time, and our kernels begin with an early return, which halves nearly everything.

/// Units of a SIMD, including its share of the compute unit's shared units.
pub const UNITS: [&str; 8] =
    ["VALU", "transcendental", "scalar", "branch", "vector memory", "LDS", "cache bytes", "LDS bytes"];
const VALU: usize = 0;
const TRANSCENDENTAL: usize = 1;
const SCALAR: usize = 2;
const BRANCH: usize = 3;
const VECTOR_MEMORY: usize = 4;
const LDS: usize = 5;
const CACHE_BYTES: usize = 6;
const LDS_BYTES: usize = 7;

/// Bytes per cycle and SIMD. The two SIMDs of a compute unit share 128 bytes per cycle of vector cache, and as much of
/// LDS.
const SIMD_BYTES: f64 = 64.0;
/// Cycles of a 16 x 16 x 16 matrix product: a compute unit does 512 f16 operations per cycle.
const MATRIX_CYCLES: f64 = 32.0;
const MATRIX_PRODUCTS: f64 = 4096.0;

/// The work of a subgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Cycles of each of [`UNITS`].
    pub cycles: [f64; UNITS.len()],
    /// Multiply-add operations of all lanes.
    pub products: f64,
    pub instructions: f64,
}

impl Work {
    fn add(&mut self, other: &Work, times: f64) {
        self.cycles.iter_mut().zip(other.cycles).for_each(|(to, from)| *to += times * from);
        self.products += times * other.products;
        self.instructions += times * other.instructions;
    }

    /// Cycles and name of the busiest unit. These cycles are a lower bound for the subgroup.
    pub fn busiest(&self) -> (f64, &'static str) {
        let all = self.cycles.into_iter().zip(UNITS);
        all.fold((0.0, UNITS[VALU]), |most, unit| if unit.0 > most.0 { unit } else { most })
    }
}

/// A loop: its first and last basic block, inclusive.
#[derive(Debug, Clone, PartialEq)]
pub struct Loop {
    first: usize,
    last: usize,
}

/// The work of each basic block, and the loops.
pub struct Program {
    blocks: Vec<Work>,
    /// Loops in the order of their first blocks, outer before inner.
    pub loops: Vec<Loop>,
}

impl Program {
    /// Parses RADV's assembly. `lanes` is the subgroup size, `dual_issue` as in [`Speed`](crate::devices::Speed).
    pub fn parse(assembly: &str, lanes: u32, dual_issue: bool) -> Program {
        let (mut blocks, mut names) = (vec![Work::default()], vec!["BB0"]);
        let mut jumps: Vec<(usize, &str)> = Vec::new();
        for line in assembly.lines() {
            let line = line.split(';').next().unwrap_or_default().trim();
            if let Some(name) = line.strip_suffix(':') {
                if name != "BB0" {
                    blocks.push(Work::default());
                    names.push(name);
                }
                continue;
            }
            let at = blocks.len() - 1;
            blocks[at].add(&work_of(line, lanes, dual_issue), 1.0);
            if line.starts_with("s_cbranch") || line.starts_with("s_branch") {
                jumps.extend(line.split_whitespace().nth(1).map(|to| (at, to)));
            }
        }
        let mut loops: Vec<Loop> = Vec::new();
        for (from, to) in jumps {
            let Some(to) = names.iter().position(|name| *name == to).filter(|to| *to <= from) else { continue };
            match loops.iter_mut().find(|of| of.first == to) {
                Some(of) => of.last = of.last.max(from),
                None => loops.push(Loop { first: to, last: from }),
            }
        }
        loops.sort_by_key(|of| (of.first, usize::MAX - of.last));
        Program { blocks, loops }
    }

    /// The work of a subgroup, given the trip count of each of [`loops`](Program::loops).
    pub fn work(&self, trips: &[f64]) -> Work {
        let mut sum = Work::default();
        for (at, block) in self.blocks.iter().enumerate() {
            let around = self.loops.iter().zip(trips).filter(|(of, _)| (of.first..=of.last).contains(&at));
            sum.add(block, around.map(|(_, trips)| trips).product());
        }
        sum
    }
}

/// Bytes that a lane loads or stores, by instruction name: `buffer_load_b128`, or `buffer_load_dwordx4` on GFX10.
fn access_bytes(name: &str) -> f64 {
    let widths = [("dwordx4", 16.0), ("dwordx3", 12.0), ("dwordx2", 8.0), ("b128", 16.0), ("b96", 12.0), ("b64", 8.0)];
    let small = [("16", 2.0), ("short", 2.0), ("u8", 1.0), ("i8", 1.0), ("byte", 1.0)];
    let found = widths.into_iter().chain(small).find(|(part, _)| name.contains(part));
    found.map_or(4.0, |(_, bytes)| bytes)
}

/// Instructions that RDNA3 issues for 64 lanes in one cycle.
const DUAL: &[&str] = &[
    "v_fma_f32",
    "v_fmac_f32",
    "v_fmaak_f32",
    "v_fmamk_f32",
    "v_mul_f32",
    "v_add_f32",
    "v_sub_f32",
    "v_subrev_f32",
    "v_fma_f16",
    "v_fmac_f16",
    "v_mul_f16",
    "v_add_f16",
    "v_sub_f16",
    "v_mov_b32",
    "v_cndmask_b32",
    "v_max_f32",
    "v_min_f32",
    "v_max_f16",
    "v_min_f16",
    "v_add_i16",
    "v_mul_lo_u16",
    "v_and_b16",
    "v_or_b16",
    "v_dot2_f32_f16",
    "v_dot2acc_f32_f16",
    "v_dot2_f16_f16",
];
const TRANSCENDENTALS: &[&str] = &["v_rcp", "v_rsq", "v_sqrt", "v_exp", "v_log", "v_sin", "v_cos"];
/// 32-bit integer multiplications, at a quarter of the rate.
const QUARTER: &[&str] =
    &["v_mul_lo_u32", "v_mul_hi_u32", "v_mul_hi_i32", "v_mul_lo_i32", "v_mad_u64_u32", "v_mad_i64_i32"];
/// Instructions that cost no cycles of a unit.
const FREE: &[&str] = &[
    "s_waitcnt",
    "s_delay_alu",
    "s_clause",
    "s_nop",
    "s_barrier",
    "s_endpgm",
    "s_code_end",
    "s_sendmsg",
    "s_inst_prefetch",
    "s_wait_",
];

fn work_of(line: &str, lanes: u32, dual_issue: bool) -> Work {
    let name = line.split_whitespace().next().unwrap_or_default();
    let mut work = Work { instructions: 1.0, ..Work::default() };
    let wide = f64::from(lanes);
    let passes = if lanes == 64 { 2.0 } else { 1.0 };
    let starts = |names: &[&str]| names.iter().any(|start| name.starts_with(start));
    if name.starts_with("v_wmma") {
        work.cycles[VALU] = MATRIX_CYCLES;
        work.products = MATRIX_PRODUCTS;
    } else if name.starts_with("v_dual") {
        work.cycles[VALU] = 1.0;
        work.products = wide * line.matches("fma").count() as f64;
    } else if name.starts_with("v_") {
        let base = name.trim_end_matches("_e32").trim_end_matches("_e64");
        let is_cross_lane = ["dpp", "quad_perm", "row_"].iter().any(|word| line.contains(word));
        let is_dual = dual_issue && DUAL.contains(&base) && !is_cross_lane;
        work.cycles[VALU] = if is_dual { 1.0 } else { passes };
        if starts(TRANSCENDENTALS) {
            work.cycles[TRANSCENDENTAL] = 4.0 * passes;
        } else if QUARTER.contains(&base) {
            work.cycles[VALU] = 4.0 * passes;
            work.cycles[TRANSCENDENTAL] = 4.0 * passes;
        } else if base.ends_with("_f64") || base.starts_with("v_lsh") && base.contains("_b64") {
            work.cycles[VALU] = 2.0 * passes;
        }
        let products = [("dot4", 4.0), ("dot8", 8.0), ("dot2", 2.0), ("pk_fma", 2.0), ("fma", 1.0), ("mac_f", 1.0)];
        work.products = wide * products.iter().find(|(part, _)| base.contains(part)).map_or(0.0, |(_, each)| *each);
    } else if starts(&["buffer_", "global_", "flat_", "scratch_"]) {
        work.cycles[VECTOR_MEMORY] = passes;
        if !name.contains("_inv") {
            work.cycles[CACHE_BYTES] = access_bytes(name) * wide / SIMD_BYTES;
        }
    } else if name.starts_with("ds_") {
        work.cycles[LDS] = passes;
        let two = ["2addr", "read2", "write2"].iter().any(|word| name.contains(word));
        work.cycles[LDS_BYTES] = if two { 2.0 } else { 1.0 } * access_bytes(name) * wide / SIMD_BYTES;
    } else if name.starts_with("s_cbranch") || name == "s_branch" {
        work.cycles[BRANCH] = 3.0;
    } else if name.starts_with("s_") && !starts(FREE) {
        work.cycles[SCALAR] = 1.0;
    } else if !name.starts_with("s_") {
        work.instructions = 0.0;
    }
    work
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected cycles: counted by hand from the tables of "RDNA3 Instruction Set Architecture" and ACO's costs.
    #[test]
    fn instruction_costs_match_the_architecture_manual() {
        let check = |line: &str, lanes, dual, unit: usize, cycles: f64, products: f64| {
            let work = work_of(line, lanes, dual);
            assert_eq!((work.cycles[unit], work.products), (cycles, products), "{line}");
        };
        check("v_fma_f32 v0, v1, v2, v3", 64, true, VALU, 1.0, 64.0);
        check("v_fma_f32 v0, v1, v2, v3", 64, false, VALU, 2.0, 64.0);
        check("v_dot4_i32_iu8 v0, v1, v2, v3", 32, true, VALU, 1.0, 128.0);
        check("v_dual_fmac_f32 v0, v1, v2 :: v_dual_fmac_f32 v3, v4, v5", 32, true, VALU, 1.0, 64.0);
        check("v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]", 64, true, VALU, 32.0, 4096.0);
        check("v_exp_f32_e32 v0, v1", 64, true, TRANSCENDENTAL, 8.0, 0.0);
        check("buffer_load_b128 v[0:3], v4, s[0:3], 0 offen", 64, true, CACHE_BYTES, 16.0, 0.0);
        check("buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen", 64, false, CACHE_BYTES, 16.0, 0.0);
        check("ds_load_2addr_b32 v[0:1], v2 offset1:1", 32, true, LDS_BYTES, 4.0, 0.0);
        check("s_add_u32 s0, s1, s2", 64, true, SCALAR, 1.0, 0.0);
        check("s_waitcnt vmcnt(0)", 64, true, SCALAR, 0.0, 0.0);
    }

    #[test]
    fn trip_counts_multiply_the_work_of_loops() {
        let assembly = "BB0:\n\ts_mov_b32 s0, 0 ; 00\nBB1:\n\tv_fma_f32 v0, v1, v2, v3\nBB2:\n\tv_fma_f32 v0, v1, v2, v3\n\
                        \ts_cbranch_scc1 BB2\n\ts_cbranch_scc1 BB1\nBB3:\n\ts_endpgm\n";
        let program = Program::parse(assembly, 32, false);
        assert_eq!(program.loops, [Loop { first: 1, last: 2 }, Loop { first: 2, last: 2 }]);
        let work = program.work(&[3.0, 5.0]);
        assert_eq!(work.cycles[VALU], 3.0 + 15.0);
        assert_eq!(work.products, 32.0 * 18.0);
        // Both jumps are in the inner block, as in real assembly.
        assert_eq!(work.cycles[BRANCH], 15.0 * 6.0);
    }
}
