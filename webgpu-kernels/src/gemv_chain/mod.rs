//! The end of a decoder layer and the beginning of the next one, up to its attention, for one row in one dispatch: [`GemvChain`].
//!
//! Between two dependent dispatches the memory is idle for microseconds. In a chain, workgroups load their first weights and then wait for the
//! stage before, on devices with [`Caps::forward_progress`](crate::gpu::Caps::forward_progress). gemv_chain.wgsl lists the stages. A
//! [`ChainChoice`] has the number and size of workgroups. The reference and the substitute are the kernels of [`crate::gemv`] and
//! [`crate::attention`], one dispatch each.

mod cases;
mod choice;
mod full;
mod links;
mod tunable;
mod words;

use crate::{
    Factor, Gpu, Kernel, KvDtype, KvPool, Rows,
    attention::AttentionShape,
    gemv::GemvRope,
    gpu::{Binding, Buffer, Recorder},
    kernel::{
        Access::{Read, ReadWrite},
        Params, params,
    },
    matrix::Slice,
    selftest::Switch,
};

pub use crate::tuning::ChainChoice;
pub use choice::{ChainShape, EndShape, Heads};
use choice::{FORMAT, HALF, MOST_SPLITS};
pub use full::check_full;
use links::LinkSets;
pub use links::Links;
pub use tunable::{TUNABLE, choice_cases};

/// Stages 0 to 2, the end of a layer: the matrices of attention's output, of gate and up, and of down, with the norms after them.
pub struct GemvChain<'a> {
    /// `[hidden, heads * head_dim]`.
    pub out: &'a Slice,
    /// Weights of the norm after `out`: `[hidden]`.
    pub out_norm: &'a Buffer<f32>,
    /// `[2 * inner, hidden]`.
    pub gate_up: &'a Slice,
    /// `[hidden, inner]`.
    pub down: &'a Slice,
    /// Weights of the norm after `down`: `[hidden]`.
    pub down_norm: &'a Buffer<f32>,
    /// Epsilon of both norms.
    pub eps: f32,
}

/// Stages 3 to 5, the beginning of a layer after its norm: queries, keys and values, and attention.
pub struct AttentionStages<'a> {
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`.
    pub qkv: &'a Slice,
    /// `[positions, head_dim / 2, 2]`.
    pub rope: &'a Buffer<f32>,
    /// Heads, scale and mask. All of a head is rotated, and scores are not capped.
    pub shape: AttentionShape,
    /// The token: one row.
    pub rows: &'a Rows,
    /// Keys and values of the layer. The stages append the token's.
    pub cache: &'a KvPool,
    /// The output of attention: `[heads * head_dim]`.
    pub y: &'a Buffer<f32>,
}

/// The beginning of a decoder's first layer: its norm. [`AttentionStages`] follow.
pub struct GemvStart<'a> {
    /// The residual stream: `[hidden]`.
    pub x: &'a Buffer<f32>,
    /// Weights of the norm: `[hidden]`.
    pub norm: &'a Buffer<f32>,
    /// Epsilon of the norm.
    pub eps: f32,
}

params! {
    // Fields of stages that a chain does not have are zero.
    struct ChainParams {
        rows0: u32, blocks0: u32, groups0: u32, passes0: u32,
        rows1: u32, blocks1: u32, groups1: u32, passes1: u32,
        rows2: u32, blocks2: u32, groups2: u32, passes2: u32,
        rows3: u32, blocks3: u32, groups3: u32, passes3: u32,
        eps: f32, most_polls: u32, stale_words: u32,
        heads: u32, kv_heads: u32,
        begin: u32, splits: u32, split_keys: u32, groups4: u32, groups5: u32, scale: f32,
    }
}

/// The record of the kernel with stages 0 to 2.
pub static KERNEL: Kernel = Kernel {
    name: "gemv_chain",
    wgsl: concat!(
        include_str!("gemv_chain.wgsl"),
        include_str!("links.wgsl"),
        include_str!("product.wgsl"),
        include_str!("out.wgsl"),
        include_str!("gate_up.wgsl"),
        include_str!("down.wgsl"),
        include_str!("qkv.wgsl"),
        include_str!("attention.wgsl"),
        include_str!("join.wgsl"),
    ),
    bindings: &[
        Read, Read, Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite, ReadWrite, ReadWrite,
    ],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, &KERNEL),
    has_substitute: true,
    runs_once: true,
    ..Kernel::DEFAULTS
};

/// The record of the kernel with all stages.
pub static ATTENTION_KERNEL: Kernel = Kernel {
    name: "gemv_chain_attention",
    wgsl: KERNEL.wgsl,
    bindings: &[
        Read, Read, Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite, Read, Read, Read,
        ReadWrite, ReadWrite, Read,
    ],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, &ATTENTION_KERNEL),
    has_substitute: true,
    runs_once: true,
    ..Kernel::DEFAULTS
};

/// The record of the kernel with stages 3 to 5.
pub static START_KERNEL: Kernel = Kernel {
    name: "gemv_chain_start",
    wgsl: KERNEL.wgsl,
    bindings: &[Read, Read, Read, Read, ReadWrite, ReadWrite, Read, ReadWrite, ReadWrite, Read],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, &START_KERNEL),
    has_substitute: true,
    runs_once: true,
    ..Kernel::DEFAULTS
};

/// All chain kernels.
const ALL: [&Kernel; 3] = [&KERNEL, &ATTENTION_KERNEL, &START_KERNEL];

/// Uses separate dispatches on a device from now on. Returns false if it did so already.
pub fn switch_off(gpu: &Gpu) -> bool {
    let on: Vec<_> = ALL.iter().filter(|kernel| !gpu.is_off(kernel.name)).collect();
    on.iter().for_each(|kernel| gpu.switch_off(Switch { kernel: kernel.name.into(), flag: None }));
    !on.is_empty()
}

/// True if a device uses separate dispatches after [`switch_off`].
pub fn is_off(gpu: &Gpu) -> bool {
    ALL.iter().all(|kernel| gpu.is_off(kernel.name))
}

/// The end of a chain with stage 0.
enum End<'a> {
    /// Writes the residual stream times the norm's weights, and partial sums of its squares.
    Normed { y: &'a Buffer<f32>, squares: &'a Buffer<f32> },
    /// Goes on with the next layer's attention.
    Attended(&'a AttentionStages<'a>),
}

impl GemvChain<'_> {
    /// The shape. `next`: matrix and heads of the attention stages. `None` if a chain does not support the matrices.
    pub fn shape(&self, next: Option<(&Slice, Heads)>) -> Option<ChainShape> {
        let (qkv, heads) = next.unzip();
        let shape = self.extents(heads);
        let all = [Some(self.out), Some(self.gate_up), Some(self.down), qkv];
        are_chainable(&shape, all.into_iter().flatten()).then_some(shape)
    }

    /// The shape, from the matrices' columns: cases have fewer rows.
    fn extents(&self, heads: Option<Heads>) -> ChainShape {
        let end = EndShape { attended: self.out.cols, inner: self.down.cols };
        ChainShape { hidden: self.gate_up.cols, end: Some(end), heads }
    }

    /// Records the end of a layer. `x`: `[heads * head_dim]`, attention's output. `sum`: `[hidden]`, the residual stream.
    ///
    /// Returns the stream times the norm's weights, `[hidden]`, and the factor that completes the norm.
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
        let sets = links.next(self.extents(None).link_values(0));
        self.record_to(recorder, choice, [x, sum], sets, End::Normed { y: &y, squares: &squares });
        (y, Factor::new(squares, parts, self.eps))
    }

    /// Records the end of a layer and the next layer's attention.
    pub fn record_attended(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        x: &Buffer<f32>,
        sum: &Buffer<f32>,
        links: &mut Links,
        next: &AttentionStages<'_>,
    ) {
        let values = self.extents(Some(next.heads())).link_values(choice.splits(next.keys()).0);
        let sets = links.next(values);
        self.record_to(recorder, choice, [x, sum], sets, End::Attended(next));
    }

    fn record_to(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        [x, sum]: [&Buffer<f32>; 2],
        sets: LinkSets<'_>,
        end: End<'_>,
    ) {
        let mut slices = vec![self.out, self.gate_up, self.down];
        let mut buffers = of_slices(&slices);
        buffers.extend([x, self.out_norm, self.down_norm, sum].map(Binding::from));
        buffers.extend([sets.links, sets.stale].map(Binding::from));
        let next = match end {
            End::Normed { y, squares } => {
                buffers.extend([y, squares].map(Binding::from));
                None
            }
            End::Attended(next) => {
                slices.push(next.qkv);
                buffers.extend(of_slices(&[next.qkv]));
                buffers.extend(next.buffers());
                Some(next)
            }
        };
        let shape = self.extents(next.map(AttentionStages::heads));
        Dispatch { choice, shape, slices, eps: self.eps, next }.record(recorder, &sets, &buffers);
    }
}

impl GemvStart<'_> {
    /// The shape. `None` if a chain does not support the matrix.
    pub fn shape(qkv: &Slice, heads: Heads) -> Option<ChainShape> {
        let shape = GemvStart::extents(qkv, heads);
        are_chainable(&shape, [qkv].into_iter()).then_some(shape)
    }

    fn extents(qkv: &Slice, heads: Heads) -> ChainShape {
        ChainShape { hidden: qkv.cols, end: None, heads: Some(heads) }
    }

    /// Records the beginning of the first layer.
    pub fn record(&self, recorder: &mut Recorder, choice: ChainChoice, links: &mut Links, next: &AttentionStages<'_>) {
        let values = GemvStart::extents(next.qkv, next.heads()).link_values(choice.splits(next.keys()).0);
        let sets = links.next(values);
        self.record_to(recorder, choice, sets, next);
    }

    fn record_to(&self, recorder: &mut Recorder, choice: ChainChoice, sets: LinkSets<'_>, next: &AttentionStages<'_>) {
        let slices = vec![next.qkv];
        let mut buffers = of_slices(&slices);
        buffers.extend([self.x, self.norm].map(Binding::from));
        buffers.extend([sets.links, sets.stale].map(Binding::from));
        buffers.extend(next.buffers());
        let shape = GemvStart::extents(next.qkv, next.heads());
        let dispatch = Dispatch { choice, shape, slices, eps: self.eps, next: Some(next) };
        dispatch.record(recorder, &sets, &buffers);
    }
}

impl<'a> AttentionStages<'a> {
    fn heads(&self) -> Heads {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        Heads { heads, kv_heads, head_dim }
    }

    fn position(&self) -> usize {
        self.rows.position("gemv_chain")
    }

    /// Number of earlier keys that the token sees.
    fn keys(&self) -> usize {
        self.shape.seen_at(self.position()) - 1
    }

    fn buffers(&self) -> [Binding<'a>; 4] {
        [self.rope.into(), self.y.into(), (&self.cache.kv).into(), (&self.rows.words).into()]
    }
}

/// True if a chain supports the matrices' format. Panics if they do not have the shape.
fn are_chainable<'a>(shape: &ChainShape, slices: impl Iterator<Item = &'a Slice> + Clone) -> bool {
    let is_one = slices.clone().all(|slice| slice.format == FORMAT);
    assert!(!is_one || slices.map(|slice| (slice.rows, slice.cols)).eq(shape.products()), "gemv_chain: shapes");
    is_one
}

fn of_slices<'a>(slices: &[&'a Slice]) -> Vec<Binding<'a>> {
    slices.iter().flat_map(|slice| [(&slice.q_weight).into(), (&slice.q_scale).into()]).collect()
}

/// A chain without its buffers.
struct Dispatch<'a> {
    choice: ChainChoice,
    shape: ChainShape,
    /// Matrices, in the order of the products.
    slices: Vec<&'a Slice>,
    eps: f32,
    next: Option<&'a AttentionStages<'a>>,
}

impl Dispatch<'_> {
    fn record(&self, recorder: &mut Recorder, sets: &LinkSets<'_>, buffers: &[Binding<'_>]) {
        let Dispatch { choice, shape, slices, eps, next } = self;
        let caps = *recorder.gpu().caps();
        let mut params = ChainParams {
            eps: *eps,
            most_polls: sets.most_polls,
            stale_words: sets.stale_words as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        // Workgroups of each stage, and bytes that it reads.
        let mut stages: Vec<(u32, u64)> = Vec::new();
        for (product, Slice { rows, cols, format, .. }) in (shape.first()..).zip(slices) {
            let (groups, passes) = choice.groups_and_passes(*rows, *cols);
            params.set_product(product, [*rows as u32, (cols / HALF) as u32, groups, passes]);
            stages.push((groups, format.matrix_bytes(*rows, *cols)));
        }
        let (mut keys, mut stored) = (0, KvDtype::default());
        if let Some(next) = next {
            let KvPool { kv_heads, head_dim, dtype, .. } = *next.cache;
            let heads = next.heads();
            assert_eq!((kv_heads, head_dim), (heads.kv_heads, heads.head_dim), "gemv_chain: shape of the pool");
            assert!(GemvRope::supports(head_dim, head_dim, dtype), "gemv_chain: heads of {head_dim}");
            next.cache.assert_has_pages(next.rows, "gemv_chain");
            (keys, stored) = (next.keys(), dtype);
            let (splits, range) = choice.splits(keys);
            let teams = choice.teams(&caps, heads, keys).expect("the device supports the chain");
            params = ChainParams {
                heads: heads.heads as u32,
                kv_heads: kv_heads as u32,
                begin: (next.position() - keys) as u32,
                splits: splits as u32,
                split_keys: range as u32,
                groups4: (heads.heads * splits) as u32 / teams.heads,
                groups5: choice.joins(&caps, heads, splits),
                scale: next.shape.scale,
                ..params
            };
            stages.extend([(params.groups4, next.cache.bytes_of(keys + 1)), (params.groups5, 0)]);
        }
        let (kernel, variant) = (shape.kernel(), choice.variant(&caps, shape, keys, stored));
        let mut dispatch = |groups: u32, bytes: u64| {
            recorder.expect_bytes(bytes);
            recorder.dispatch(kernel, &variant, &params, buffers, groups as usize);
        };
        if caps.forward_progress {
            dispatch(stages.iter().map(|stage| stage.0).sum(), stages.iter().map(|stage| stage.1).sum());
            return;
        }
        for (groups, bytes) in stages.into_iter().filter(|stage| stage.0 > 0) {
            dispatch(groups, bytes);
        }
    }
}

impl ChainParams {
    fn set_product(&mut self, product: usize, [rows, blocks, groups, passes]: [u32; 4]) {
        let [to_rows, to_blocks, to_groups, to_passes] = match product {
            0 => [&mut self.rows0, &mut self.blocks0, &mut self.groups0, &mut self.passes0],
            1 => [&mut self.rows1, &mut self.blocks1, &mut self.groups1, &mut self.passes1],
            2 => [&mut self.rows2, &mut self.blocks2, &mut self.groups2, &mut self.passes2],
            _ => [&mut self.rows3, &mut self.blocks3, &mut self.groups3, &mut self.passes3],
        };
        (*to_rows, *to_blocks, *to_groups, *to_passes) = (rows, blocks, groups, passes);
    }
}
