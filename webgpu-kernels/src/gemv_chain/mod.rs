//! The end of a decoder's layer, and the beginning of the next up to its attention, for one row in one dispatch: [`GemvChain`].
//!
//! A dispatch that waits for the one before costs microseconds in which the memory does nothing. Here workgroups load their first
//! weights and then wait for the stage before, on devices with [`Caps::forward_progress`](crate::gpu::Caps::forward_progress).
//! How much is done by how many is a [`ChainChoice`]; the kernels of [`crate::gemv`] and [`crate::attention`], one dispatch each,
//! are the reference, and stand in where there is no choice.

mod cases;
mod choice;
mod full;
mod links;

use crate::{
    Factor, Gpu, Kernel, KvCache, KvDtype,
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
pub use choice::{ChainShape, EndShape, Heads, TUNABLE, choice_cases};
use choice::{FORMAT, HALF, MOST_SPLITS};
pub use full::check_full;
pub use links::Links;
use links::Turn;

/// The matrices and norms of the end of a layer: of attention's output, of gate and up, of down, all of one width.
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

/// What a layer begins with, its norm left out: queries, keys and values, and attention.
pub struct Attended<'a> {
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`.
    pub qkv: &'a Slice,
    /// `[positions, head_dim / 2, 2]`.
    pub rope: &'a Buffer<f32>,
    /// Query heads.
    pub heads: usize,
    /// Tokens that the cache holds already.
    pub position: usize,
    /// Keys and values of the tokens before, where those of this one go.
    pub cache: &'a KvCache,
    /// Factor on products of a query and a key.
    pub scale: f32,
    /// How many keys are seen, the last ones, this token's among them. `None`: all.
    pub window: Option<usize>,
    /// What the queries find: `[heads * head_dim]`.
    pub y: &'a Buffer<f32>,
}

/// The beginning of a decoder's first layer: its norm, and what comes after it.
pub struct GemvStart<'a> {
    /// The residual stream: `[hidden]`.
    pub x: &'a Buffer<f32>,
    /// Of the stream: `[hidden]`.
    pub norm: &'a Buffer<f32>,
    /// Added to the mean square before its root.
    pub eps: f32,
}

params! {
    // What a chain does not have is zero.
    struct ChainParams {
        rows0: u32, blocks0: u32, groups0: u32, passes0: u32,
        rows1: u32, blocks1: u32, groups1: u32, passes1: u32,
        rows2: u32, blocks2: u32, groups2: u32, passes2: u32,
        rows3: u32, blocks3: u32, groups3: u32, passes3: u32,
        eps: f32, most_polls: u32, stale_words: u32,
        heads: u32, kv_heads: u32, position: u32, capacity: u32,
        begin: u32, splits: u32, split_keys: u32, groups4: u32, groups5: u32, scale: f32,
    }
}

/// The kernel's record, of a chain that ends with down.
pub static KERNEL: Kernel = Kernel {
    name: "gemv_chain",
    wgsl: concat!(include_str!("gemv_chain.wgsl"), include_str!("attention.wgsl")),
    bindings: &[
        Read, Read, Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite, ReadWrite, ReadWrite,
    ],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, &KERNEL),
};

/// The kernel's record, of a chain that ends with the next layer's attention.
pub static ATTENTION_KERNEL: Kernel = Kernel {
    name: "gemv_chain_attention",
    wgsl: KERNEL.wgsl,
    bindings: &[
        Read, Read, Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite, Read, Read, Read,
        ReadWrite, ReadWrite, ReadWrite,
    ],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, &ATTENTION_KERNEL),
};

/// The kernel's record, of a chain that is the first layer's beginning up to its attention.
pub static START_KERNEL: Kernel = Kernel {
    name: "gemv_chain_start",
    wgsl: KERNEL.wgsl,
    bindings: &[Read, Read, Read, Read, ReadWrite, ReadWrite, Read, ReadWrite, ReadWrite, ReadWrite],
    params: ChainParams::LAYOUT,
    cases: |caps, set| cases::cases(caps, set, &START_KERNEL),
};

/// The kernels.
const ALL: [&Kernel; 3] = [&KERNEL, &ATTENTION_KERNEL, &START_KERNEL];

/// Uses separate dispatches on a device from now on. Returns false if it did so already.
pub fn switch_off(gpu: &Gpu) -> bool {
    let on: Vec<_> = ALL.iter().filter(|kernel| !gpu.is_off(kernel.name)).collect();
    on.iter().for_each(|kernel| gpu.switch_off(Switch { kernel: kernel.name.into(), flag: None }));
    !on.is_empty()
}

/// Whether a device uses separate dispatches after [`switch_off`].
pub fn is_off(gpu: &Gpu) -> bool {
    ALL.iter().all(|kernel| gpu.is_off(kernel.name))
}

/// How a chain ends.
enum End<'a> {
    /// With the stream times its norm, and parts of its sum of squares.
    Normed {
        y: &'a Buffer<f32>,
        squares: &'a Buffer<f32>,
    },
    Attended(&'a Attended<'a>),
}

impl GemvChain<'_> {
    /// The shape, with what the next layer begins with, where the matrices are such as a chain is for.
    pub fn shape(&self, next: Option<(&Slice, Heads)>) -> Option<ChainShape> {
        let (qkv, heads) = next.unzip();
        let shape = self.extents(heads);
        let all = [Some(self.out), Some(self.gate_up), Some(self.down), qkv];
        fits(&shape, all.into_iter().flatten()).then_some(shape)
    }

    /// The shape by inputs: cases have fewer rows than a chain that is whole.
    fn extents(&self, heads: Option<Heads>) -> ChainShape {
        let end = EndShape { attended: self.out.cols, inner: self.down.cols };
        ChainShape { hidden: self.gate_up.cols, end: Some(end), heads }
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
        let turn = links.next(self.extents(None).link_values(0));
        self.record_to(recorder, choice, [x, sum], turn, End::Normed { y: &y, squares: &squares });
        (y, Factor::new(squares, parts, self.eps))
    }

    /// The same, and the next layer's attention.
    pub fn record_attended(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        x: &Buffer<f32>,
        sum: &Buffer<f32>,
        links: &mut Links,
        next: &Attended<'_>,
    ) {
        let values = self.extents(Some(next.heads())).link_values(choice.splits(next.keys()).0);
        let turn = links.next(values);
        self.record_to(recorder, choice, [x, sum], turn, End::Attended(next));
    }

    fn record_to(
        &self,
        recorder: &mut Recorder,
        choice: ChainChoice,
        [x, sum]: [&Buffer<f32>; 2],
        turn: Turn<'_>,
        end: End<'_>,
    ) {
        let mut slices = vec![self.out, self.gate_up, self.down];
        let mut buffers = of_slices(&slices);
        buffers.extend([x, self.out_norm, self.down_norm, sum].map(Binding::from));
        buffers.extend([turn.links, turn.stale].map(Binding::from));
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
        let shape = self.extents(next.map(Attended::heads));
        Dispatch { choice, shape, slices, eps: self.eps, next }.record(recorder, &turn, &buffers);
    }
}

impl GemvStart<'_> {
    /// The shape, where the matrix is such as a chain is for.
    pub fn shape(qkv: &Slice, heads: Heads) -> Option<ChainShape> {
        let shape = GemvStart::extents(qkv, heads);
        fits(&shape, [qkv].into_iter()).then_some(shape)
    }

    fn extents(qkv: &Slice, heads: Heads) -> ChainShape {
        ChainShape { hidden: qkv.cols, end: None, heads: Some(heads) }
    }

    /// The beginning of the first layer.
    pub fn record(&self, recorder: &mut Recorder, choice: ChainChoice, links: &mut Links, next: &Attended<'_>) {
        let values = GemvStart::extents(next.qkv, next.heads()).link_values(choice.splits(next.keys()).0);
        let turn = links.next(values);
        self.record_to(recorder, choice, turn, next);
    }

    fn record_to(&self, recorder: &mut Recorder, choice: ChainChoice, turn: Turn<'_>, next: &Attended<'_>) {
        let slices = vec![next.qkv];
        let mut buffers = of_slices(&slices);
        buffers.extend([self.x, self.norm].map(Binding::from));
        buffers.extend([turn.links, turn.stale].map(Binding::from));
        buffers.extend(next.buffers());
        let shape = GemvStart::extents(next.qkv, next.heads());
        let dispatch = Dispatch { choice, shape, slices, eps: self.eps, next: Some(next) };
        dispatch.record(recorder, &turn, &buffers);
    }
}

impl<'a> Attended<'a> {
    fn heads(&self) -> Heads {
        Heads { heads: self.heads, kv_heads: self.cache.kv_heads, head_dim: self.cache.head_dim }
    }

    /// Keys of the tokens before that are seen.
    fn keys(&self) -> usize {
        self.window.map_or(self.position, |window| self.position.min(window - 1))
    }

    fn buffers(&self) -> [Binding<'a>; 4] {
        [self.rope.into(), self.y.into(), (&self.cache.k).into(), (&self.cache.v).into()]
    }
}

/// Whether matrices are such as a chain is for; that they are of the shape is a must.
fn fits<'a>(shape: &ChainShape, slices: impl Iterator<Item = &'a Slice> + Clone) -> bool {
    let is_one = slices.clone().all(|slice| slice.format == FORMAT);
    assert!(!is_one || slices.map(|slice| (slice.rows, slice.cols)).eq(shape.products()), "gemv_chain: shapes");
    is_one
}

fn of_slices<'a>(slices: &[&'a Slice]) -> Vec<Binding<'a>> {
    slices.iter().flat_map(|slice| [(&slice.q_weight).into(), (&slice.q_scale).into()]).collect()
}

/// A chain, but for its buffers.
struct Dispatch<'a> {
    choice: ChainChoice,
    shape: ChainShape,
    /// Its matrices, in the order of its products.
    slices: Vec<&'a Slice>,
    eps: f32,
    next: Option<&'a Attended<'a>>,
}

impl Dispatch<'_> {
    fn record(&self, recorder: &mut Recorder, turn: &Turn<'_>, buffers: &[Binding<'_>]) {
        let Dispatch { choice, shape, slices, eps, next } = self;
        let caps = *recorder.gpu().caps();
        let mut params = ChainParams {
            eps: *eps,
            most_polls: turn.most_polls,
            stale_words: turn.stale_words as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        // Workgroups of each stage, and what it reads.
        let mut stages: Vec<(u32, u64)> = Vec::new();
        for (product, Slice { rows, cols, format, .. }) in (shape.first()..).zip(slices) {
            let (groups, passes) = choice.groups_and_passes(*rows, *cols);
            params.set_product(product, [*rows as u32, (cols / HALF) as u32, groups, passes]);
            stages.push((groups, format.matrix_bytes(*rows, *cols)));
        }
        let (mut keys, mut stored) = (0, KvDtype::default());
        if let Some(next) = next {
            let KvCache { kv_heads, capacity, head_dim, dtype, .. } = *next.cache;
            let (heads, position) = (next.heads(), next.position);
            assert!(GemvRope::supports(head_dim, head_dim, dtype), "gemv_chain: heads of {head_dim}");
            assert!(position < capacity, "gemv_chain: position {position} in a cache for {capacity}");
            (keys, stored) = (next.keys(), dtype);
            let (splits, range) = choice.splits(keys);
            let teams = choice.teams(&caps, heads, keys).expect("a chain suits the device");
            params = ChainParams {
                heads: heads.heads as u32,
                kv_heads: kv_heads as u32,
                position: position as u32,
                capacity: capacity as u32,
                begin: (position - keys) as u32,
                splits: splits as u32,
                split_keys: range as u32,
                groups4: (heads.heads * splits) as u32 / teams.heads,
                groups5: choice.joins(&caps, heads, splits),
                scale: next.scale,
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
