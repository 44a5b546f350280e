//! The end of a decoder's layer, and the beginning of the next, for one row in one dispatch: [`GemvChain`].
//!
//! A dispatch that waits for the one before costs microseconds in which the memory does nothing. Here workgroups wait for those
//! of the stage before, once their first weights are on their way, on devices where they may ([`Caps::in_order`]). How much
//! is done by how many is a [`ChainChoice`]; the kernels of [`crate::gemv`], one dispatch each, are the reference, and stand in
//! where there is no choice.

mod cases;

use crate::{
    Case, Factor, Kernel, KvCache, KvDtype, Result, Variant, WeightFormat,
    gemv::GemvRope,
    gpu::{Binding, Buffer, Caps, Gpu, Recorder, SubgroupSizes},
    kernel::{
        Access::{Read, ReadWrite},
        Params, params,
    },
    matrix::Slice,
    tuning::{Choice, Problem, Trial, Tunable},
};

/// The matrices and norms of a chain: of attention's output, of gate and up, of down, all of one width.
pub struct GemvChain<'a> {
    /// `[hidden, heads * head_dim]`.
    pub out: &'a Slice,
    /// Of the sum after `out`: `[hidden]`.
    pub out_norm: &'a Buffer<f32>,
    /// `[2 * inner, hidden]`.
    pub gate_up: &'a Slice,
    /// `[hidden, inner]`.
    pub down: &'a Slice,
    /// Of the sum after `down`: `[hidden]`.
    pub down_norm: &'a Buffer<f32>,
    /// Added to mean squares before their roots.
    pub eps: f32,
}

/// What the next layer begins with: see [`GemvRope`].
pub struct Turned<'a> {
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`.
    pub qkv: &'a Slice,
    /// `[positions, head_dim / 2, 2]`.
    pub rope: &'a Buffer<f32>,
    /// Query heads.
    pub heads: usize,
    /// Tokens that the cache holds already.
    pub position: usize,
    /// Queries: `[heads * head_dim]`.
    pub q: &'a Buffer<f32>,
    /// Where keys and values go.
    pub cache: &'a KvCache,
}

/// How work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainChoice {
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// Outputs that a workgroup has at a time where a lane has one half group of each, 4 or 8.
    pub rows: u32,
    /// Workgroups of a stage at most.
    pub groups: u32,
    /// Whether the next weights are asked for before those at hand are multiplied.
    pub ahead: bool,
}

/// Extents of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inputs of attention's output.
    pub attended: usize,
    /// Inputs of down.
    pub inner: usize,
    /// Rows of queries, keys and values together, or zero.
    pub qkv: usize,
}

params! {
    // Without queries, keys and values, zeros from `rows3` and from `heads` on.
    struct ChainParams {
        rows0: u32, blocks0: u32, groups0: u32, passes0: u32,
        rows1: u32, blocks1: u32, groups1: u32, passes1: u32,
        rows2: u32, blocks2: u32, groups2: u32, passes2: u32,
        rows3: u32, blocks3: u32, groups3: u32, passes3: u32,
        eps: f32, first_group: u32, link_words: u32,
        heads: u32, kv_heads: u32, head_dim: u32, position: u32, capacity: u32, kv_row: u32,
    }
}

/// The kernel's record, of a chain that ends with down.
pub static KERNEL: Kernel = Kernel {
    name: "gemv_chain",
    wgsl: include_str!("gemv_chain.wgsl"),
    bindings: &[
        Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite, ReadWrite,
        ReadWrite,
    ],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, false),
};

/// The kernel's record, of a chain that ends with the next layer's queries, keys and values.
pub static ROPE_KERNEL: Kernel = Kernel {
    name: "gemv_chain_rope",
    wgsl: KERNEL.wgsl,
    bindings: &[
        Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite, Read,
        ReadWrite, ReadWrite, ReadWrite,
    ],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, true),
};

/// The choice of both kernels.
pub static TUNABLE: Tunable = Tunable {
    name: "gemv_chain",
    kernel: &ROPE_KERNEL,
    extents: &["hidden", "attended", "inner", "qkv"],
    numbers: &["workgroup", "rows", "groups", "ahead"],
    candidates,
    trial,
};

const STAGES: usize = 4;

/// What stages leave for one another on a device, in two sets that take turns: see the shader. For one width at a time.
pub struct Links {
    sets: [Buffer<u32>; 2],
    turn: usize,
    /// [`Recorder::forgotten`] when they were made: what was forgotten does not make its set ready.
    forgotten: u64,
}

/// What a word is that was not left yet: a number that is none of those that arithmetic gives.
const MISSING: u32 = u32::MAX;

impl Links {
    /// For chains of a shape. Errors: out of memory.
    pub fn new(recorder: &Recorder, shape: &ChainShape) -> Result<Links> {
        let sets = match recorder.hollow(shape.link_words()) {
            Some(hollow) => [hollow.clone(), hollow],
            None => {
                let words = vec![MISSING; shape.link_words()];
                [recorder.gpu().upload(&words)?, recorder.gpu().upload(&words)?]
            }
        };
        Ok(Links { sets, turn: 0, forgotten: recorder.forgotten() })
    }

    /// Whether they are for a shape, and as the next dispatch expects them.
    pub fn suit(&self, recorder: &Recorder, shape: &ChainShape) -> bool {
        self.sets[0].len() == shape.link_words() && self.forgotten == recorder.forgotten()
    }

    /// The set for the next dispatch, and the one that it makes ready for the one after.
    fn next(&mut self) -> [&Buffer<u32>; 2] {
        self.turn ^= 1;
        [&self.sets[self.turn], &self.sets[self.turn ^ 1]]
    }
}

impl ChainShape {
    /// Inputs and rows of each stage.
    fn stages(&self) -> Vec<(usize, usize)> {
        let ChainShape { hidden, attended, inner, qkv } = *self;
        let mut stages = vec![(hidden, attended), (2 * inner, hidden), (hidden, inner)];
        stages.extend((qkv > 0).then_some((qkv, hidden)));
        stages
    }

    /// Words of a set of links.
    fn link_words(&self) -> usize {
        2 * self.hidden + self.inner
    }

    fn of(problem: &Problem) -> ChainShape {
        let [hidden, attended, inner, qkv] = problem.sizes();
        ChainShape { hidden, attended, inner, qkv }
    }
}

impl ChainChoice {
    fn of(Choice([workgroup, rows, groups, ahead]): Choice) -> Option<ChainChoice> {
        (workgroup > 0).then_some(ChainChoice { workgroup, rows, groups, ahead: ahead == 1 })
    }

    fn numbers(self) -> Choice {
        Choice([self.workgroup, self.rows, self.groups, u32::from(self.ahead)])
    }

    /// Half groups of a row that a lane has.
    fn steps(&self, cols: usize) -> u32 {
        (cols / HALF).div_ceil(self.workgroup as usize) as u32
    }

    /// Outputs of a workgroup at a time: fewer where a lane has more of each, for registers hold no more.
    fn rows_at_once(&self, cols: usize) -> u32 {
        if self.steps(cols) > 1 { 4 } else { self.rows }
    }

    /// Workgroups of a stage, and how often each takes rows.
    fn groups_and_passes(&self, rows: usize, cols: usize) -> (u32, u32) {
        let all = (rows as u32).div_ceil(self.rows_at_once(cols));
        let passes = all.div_ceil(self.groups);
        (all.div_ceil(passes), passes)
    }

    /// Whether the device and the shape allow it.
    pub fn suits(&self, caps: &Caps, shape: &ChainShape) -> bool {
        let lanes = caps
            .subgroups
            .and_then(SubgroupSizes::fixed)
            .filter(|_| caps.max_bindings as usize >= ROPE_KERNEL.bindings.len());
        let has_lanes = lanes.is_some_and(|lanes| {
            self.workgroup.is_multiple_of(lanes) && self.rows <= lanes && self.workgroup / lanes <= MOST_PARTS
        });
        // Scales are read as pairs, and pairs do not straddle rows.
        has_lanes && shape.stages().iter().all(|&(_, cols)| cols.is_multiple_of(64) && self.steps(cols) <= MOST_STEPS)
    }

    /// The variant for stages with so many inputs.
    fn variant(&self, caps: &Caps, cols: &[usize]) -> Variant {
        let stages = cols.len();
        let lanes = caps.subgroups.and_then(SubgroupSizes::fixed).expect("a chain suits the device");
        let mut variant = Variant::new()
            .weights_in_parts(FORMAT, 2)
            .constant_is("WORKGROUP", self.workgroup)
            .constant_is("STAGES", stages as u32)
            .constant_is("PARTS", self.workgroup / lanes)
            .constant_is("LANE_BITS", lanes.ilog2())
            .constant_is("MISSING", MISSING)
            .flag("INTEGER")
            .flag("OWN_LOADS")
            .flag_if("AHEAD", self.ahead)
            .flag_if("ROPE", stages == STAGES)
            .subgroups(caps);
        for (stage, &cols) in cols.iter().enumerate() {
            let (steps, rows) = (self.steps(cols), self.rows_at_once(cols));
            let names = &NAMES[stage];
            variant = variant
                .constant_is(names.steps, steps)
                .constant_is(names.rows, rows)
                .flag_if(names.exact, cols / HALF == (steps * self.workgroup) as usize)
                .flag_if(names.eight, rows == 8)
                .flag_if(names.last, stage + 1 == stages);
            variant = names.flags.iter().fold(variant, |variant, flag| variant.flag(flag));
        }
        variant
    }
}

/// What a chain is for.
const FORMAT: WeightFormat = WeightFormat::Group { bits: 4, group_size: 32 };
/// Weights that a lane loads at once.
const HALF: usize = 16;
const MOST_STEPS: u32 = 4;
/// Subgroups of a workgroup at most.
const MOST_PARTS: u32 = 64;

/// What the shader calls things of a stage.
struct Names {
    steps: &'static str,
    rows: &'static str,
    exact: &'static str,
    eight: &'static str,
    last: &'static str,
    flags: &'static [&'static str],
}

const NAMES: [Names; STAGES] = [
    Names {
        steps: "STEPS0",
        rows: "ROWS0",
        exact: "EXACT0",
        eight: "EIGHT0",
        last: "LAST0",
        flags: &["ADD0", "FIRST0"],
    },
    Names { steps: "STEPS1", rows: "ROWS1", exact: "EXACT1", eight: "EIGHT1", last: "LAST1", flags: &["NORMED1"] },
    Names { steps: "STEPS2", rows: "ROWS2", exact: "EXACT2", eight: "EIGHT2", last: "LAST2", flags: &["ADD2"] },
    Names {
        steps: "STEPS3",
        rows: "ROWS3",
        exact: "EXACT3",
        eight: "EIGHT3",
        last: "LAST3",
        flags: &["NORMED3", "ROPE3"],
    },
];

/// The choices that are worth a try, without that of doing without: a lane for each half group of the widths that there are, and
/// workgroups for few processors and for many.
fn chains(caps: &Caps, shape: &ChainShape) -> Vec<ChainChoice> {
    let whole = (shape.hidden / HALF) as u32;
    let mut all = Vec::new();
    for workgroup in [whole, 128, 256].into_iter().filter(|lanes| (64..=256).contains(lanes)) {
        for groups in [264, 300, 396, 128, 64, 32] {
            all.push(ChainChoice { workgroup, rows: 8, groups, ahead: true });
        }
        all.push(ChainChoice { workgroup, rows: 4, groups: 528, ahead: false });
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|choice| choice.suits(caps, shape) && seen.insert(*choice));
    all
}

fn candidates(caps: &Caps, problem: &Problem) -> Vec<Choice> {
    let chains = chains(caps, &ChainShape::of(problem)).into_iter().map(ChainChoice::numbers);
    let chains = chains.filter(|_| caps.in_order);
    std::iter::once(Choice([0; 4])).chain(chains).collect()
}

fn trial(caps: &Caps, problem: &Problem, choice: Choice) -> Trial {
    let shape = ChainShape::of(problem);
    let choice = ChainChoice::of(choice);
    Trial {
        case: cases::case(caps, &shape, choice, KvDtype::F16),
        lens: cases::lens(&shape),
        rotated: 0..8,
        check: cases::small_case(caps, &shape, choice, KvDtype::F16),
    }
}

/// How a chain ends.
enum End<'a> {
    /// With the stream times its norm, and parts of its sum of squares.
    Normed {
        y: &'a Buffer<f32>,
        squares: &'a Buffer<f32>,
    },
    Turned(&'a Turned<'a>),
}

impl GemvChain<'_> {
    /// How it is done on a device: `None` where single dispatches are to be taken.
    pub fn choice(&self, gpu: &Gpu, shape: &ChainShape) -> Option<ChainChoice> {
        let kernel = if shape.qkv > 0 { &ROPE_KERNEL } else { &KERNEL };
        if !gpu.caps().in_order || gpu.is_off(kernel.name) {
            return None;
        }
        let extents = [shape.hidden, shape.attended, shape.inner, shape.qkv];
        ChainChoice::of(gpu.choice(Problem::new(&TUNABLE, Some(FORMAT), extents)))
    }

    /// The shape, of matrices that a chain is for.
    pub fn shape(&self, qkv: Option<&Slice>) -> Option<ChainShape> {
        let all = [Some(self.out), Some(self.gate_up), Some(self.down), qkv];
        let is_one = all.iter().flatten().all(|slice| slice.format == FORMAT);
        let shape = ChainShape {
            hidden: self.out.rows,
            attended: self.out.cols,
            inner: self.down.cols,
            qkv: qkv.map_or(0, |slice| slice.rows),
        };
        let fits = self.gate_up.cols == shape.hidden
            && self.gate_up.rows == 2 * shape.inner
            && self.down.rows == shape.hidden
            && qkv.is_none_or(|slice| slice.cols == shape.hidden);
        assert!(fits || !is_one, "gemv_chain: shapes");
        is_one.then_some(shape)
    }

    /// The end of a layer. `x`: `[heads * head_dim]`, attention's output. `sum`: `[hidden]`, the residual stream.
    ///
    /// Returns the sum times its norm, `[hidden]`, and the factor that is still missing.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        x: &Buffer<f32>,
        sum: &Buffer<f32>,
        links: &mut Links,
    ) -> (Buffer<f32>, Factor) {
        let parts = choice.groups_and_passes(self.down.rows, self.down.cols).0 as usize;
        let (y, squares) = (recorder.temporary(self.down.rows), recorder.temporary(parts.next_multiple_of(4)));
        self.record_to(recorder, choice, [x, sum], links.next(), End::Normed { y: &y, squares: &squares });
        (y, Factor::new(squares, parts, self.eps))
    }

    /// The same, and the next layer's queries, keys and values.
    pub fn record_turned(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        x: &Buffer<f32>,
        sum: &Buffer<f32>,
        links: &mut Links,
        turned: &Turned<'_>,
    ) {
        self.record_to(recorder, choice, [x, sum], links.next(), End::Turned(turned));
    }

    fn record_to(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        [x, sum]: [&Buffer<f32>; 2],
        [links, stale]: [&Buffer<u32>; 2],
        end: End<'_>,
    ) {
        let caps = *recorder.gpu().caps();
        let mut matrices = vec![self.out, self.gate_up, self.down];
        matrices.extend(match &end {
            End::Turned(turned) => Some(turned.qkv),
            End::Normed { .. } => None,
        });
        let cols: Vec<usize> = matrices.iter().map(|slice| slice.cols).collect();
        let mut params = ChainParams {
            eps: self.eps,
            link_words: (2 * self.gate_up.cols + self.down.cols) as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        let mut groups = Vec::new();
        for (i, Slice { rows, cols, .. }) in matrices.iter().enumerate() {
            let (count, passes) = choice.groups_and_passes(*rows, *cols);
            params.set_stage(i, [*rows as u32, (cols / HALF) as u32, count, passes]);
            groups.push(count);
        }
        let mut buffers: Vec<Binding<'_>> = Vec::with_capacity(ROPE_KERNEL.bindings.len());
        for i in 0..STAGES {
            // Where there is no last stage, any matrix stands there.
            let slice = matrices[i.min(matrices.len() - 1)];
            buffers.extend([(&slice.q_weight).into(), (&slice.q_scale).into()]);
        }
        buffers.extend([x, self.out_norm, self.down_norm, sum].map(Binding::from));
        buffers.extend([links, stale].map(Binding::from));
        let variant = choice.variant(&caps, &cols);
        let (kernel, variant) = match end {
            End::Normed { y, squares } => {
                buffers.extend([y, squares].map(Binding::from));
                (&KERNEL, variant)
            }
            End::Turned(Turned { rope, heads, position, q, cache, .. }) => {
                let KvCache { kv_heads, capacity, head_dim, dtype, .. } = **cache;
                assert!(GemvRope::suits(head_dim, head_dim, dtype), "gemv_chain: heads of {head_dim}");
                assert!(*position < capacity, "gemv_chain: position {position} in a cache for {capacity}");
                params = ChainParams {
                    heads: *heads as u32,
                    kv_heads: kv_heads as u32,
                    head_dim: head_dim as u32,
                    position: *position as u32,
                    capacity: capacity as u32,
                    kv_row: dtype.row_words(head_dim) as u32,
                    ..params
                };
                buffers.extend([(*rope).into(), (*q).into(), (&cache.k).into(), (&cache.v).into()]);
                (&ROPE_KERNEL, dtype.flag(variant))
            }
        };
        let bytes = |slices: &[&Slice]| slices.iter().map(|w| w.format.matrix_bytes(w.rows, w.cols)).sum::<u64>();
        let mut dispatch = |first_group: u32, groups: u32, bytes: u64| {
            recorder.expect_bytes(bytes);
            recorder.dispatch(kernel, &variant, &ChainParams { first_group, ..params }, &buffers, groups as usize);
        };
        if caps.in_order {
            dispatch(0, groups.iter().sum(), bytes(&matrices));
        } else {
            for (i, &count) in groups.iter().enumerate() {
                dispatch(groups[..i].iter().sum(), count, bytes(&matrices[i..=i]));
            }
        }
    }
}

impl ChainParams {
    fn set_stage(&mut self, stage: usize, [rows, blocks, groups, passes]: [u32; 4]) {
        let [to_rows, to_blocks, to_groups, to_passes] = match stage {
            0 => [&mut self.rows0, &mut self.blocks0, &mut self.groups0, &mut self.passes0],
            1 => [&mut self.rows1, &mut self.blocks1, &mut self.groups1, &mut self.passes1],
            2 => [&mut self.rows2, &mut self.blocks2, &mut self.groups2, &mut self.passes2],
            _ => [&mut self.rows3, &mut self.blocks3, &mut self.groups3, &mut self.passes3],
        };
        (*to_rows, *to_blocks, *to_groups, *to_passes) = (rows, blocks, groups, passes);
    }
}

/// Choices of a shape as cases, for whoever times them; that of single dispatches has no choice.
pub fn choice_cases(caps: &Caps, shape: ChainShape) -> Vec<(Option<ChainChoice>, Case)> {
    let all = std::iter::once(None).chain(chains(caps, &shape).into_iter().map(Some));
    all.map(|choice| (choice, cases::case(caps, &shape, choice, KvDtype::F16))).collect()
}
