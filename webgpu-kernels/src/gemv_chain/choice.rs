//! [`ChainShape`], and the variants and workgroups of a [`ChainChoice`] for it.

use super::{
    ATTENTION_KERNEL, KERNEL, START_KERNEL,
    words::{EXPIRED, PENDING, POLLS_TO_CHECK, TICKET, VALUES},
};
use crate::{
    Kernel, KvDtype, Variant, WeightFormat,
    attention::UNSPLIT_KEYS,
    gpu::Caps,
    tuning::{ChainChoice, Teams},
};

/// Extents of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Stages 0 to 2, if the chain has them.
    pub end: Option<EndShape>,
    /// Stages 3 to 5, if the chain has them.
    pub heads: Option<Heads>,
}

/// Extents of the end of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndShape {
    /// Inputs of the matrix of attention's output.
    pub attended: usize,
    /// Inputs of the down matrix.
    pub inner: usize,
}

/// Heads of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// The supported format of weights.
pub(super) const FORMAT: WeightFormat = WeightFormat::Group { bits: 4, group_size: 32 };
/// Most products of a chain.
pub(super) const PRODUCTS: usize = 4;
/// Most ranges of keys.
pub(super) const MOST_SPLITS: usize = 32;
/// Weights that a lane loads at once.
pub(super) const HALF: usize = 16;
const MOST_STEPS: u32 = 4;
/// Most clusters of a workgroup.
const MOST_PARTS: u32 = 64;
/// Up to this many lanes per workgroup, a lane has so many weights of a wide product that some devices run out of registers.
const NARROW: u32 = 128;
/// Keys of a range, measured on an H100.
const RANGE: u32 = 96;
/// Most heads of a workgroup, and keys that a team loads at a time. Few keys are one range, so heads are divided instead.
const MANY_KEYS: (u32, u32) = (3, 4);
const FEW_KEYS: (u32, u32) = (1, 8);

/// Names in the shader of a product's constants and flags: see product.wgsl.
struct ProductNames {
    /// Constants.
    steps: &'static str,
    rows: &'static str,
    /// True if the lanes of a workgroup have exactly the blocks of a row.
    exact: &'static str,
    /// True if a tile has eight rows.
    eight: &'static str,
    /// True if the product is the chain's first one.
    from_x: &'static str,
    /// Always true: residual or norm.
    kind: &'static str,
}

#[rustfmt::skip]
const NAMES: [ProductNames; PRODUCTS] = [
    ProductNames { steps: "STEPS0", rows: "ROWS0", exact: "EXACT0", eight: "EIGHT0", from_x: "FROM_X0", kind: "RESIDUAL0" },
    ProductNames { steps: "STEPS1", rows: "ROWS1", exact: "EXACT1", eight: "EIGHT1", from_x: "FROM_X1", kind: "NORMED1" },
    ProductNames { steps: "STEPS2", rows: "ROWS2", exact: "EXACT2", eight: "EIGHT2", from_x: "FROM_X2", kind: "RESIDUAL2" },
    ProductNames { steps: "STEPS3", rows: "ROWS3", exact: "EXACT3", eight: "EIGHT3", from_x: "FROM_X3", kind: "NORMED3" },
];

impl Heads {
    /// Query heads of a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows of the matrix of queries, keys and values.
    pub(super) fn rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

impl ChainShape {
    /// Rows and inputs of each product, from product [`ChainShape::first`] on.
    pub(super) fn products(&self) -> Vec<(usize, usize)> {
        let of_end = |EndShape { attended, inner }: EndShape| {
            [(self.hidden, attended), (2 * inner, self.hidden), (self.hidden, inner)]
        };
        let end = self.end.map(of_end);
        end.into_iter().flatten().chain(self.heads.map(|heads| (heads.rows(), self.hidden))).collect()
    }

    /// Number of the first product.
    pub(super) fn first(&self) -> usize {
        if self.end.is_some() { 0 } else { PRODUCTS - 1 }
    }

    pub(super) fn kernel(&self) -> &'static Kernel {
        match (self.end, self.heads) {
            (None, _) => &START_KERNEL,
            (Some(_), None) => &KERNEL,
            (Some(_), Some(_)) => &ATTENTION_KERNEL,
        }
    }

    /// Values that the stages publish with `splits` ranges of keys.
    pub(super) fn link_values(&self, splits: usize) -> usize {
        let inputs: usize = self.products().iter().map(|(_, cols)| cols).skip(1).sum();
        let of_heads =
            |heads: Heads| heads.rows() + if splits > 1 { splits * heads.heads * (heads.head_dim + 2) } else { 0 };
        inputs + self.heads.map_or(0, of_heads)
    }
}

impl ChainChoice {
    /// Blocks of a row per lane.
    fn steps(&self, cols: usize) -> u32 {
        (cols / HALF).div_ceil(self.workgroup as usize) as u32
    }

    /// Outputs of a tile. With several blocks per lane there are fewer, because registers are limited.
    fn rows_at_once(&self, cols: usize) -> u32 {
        if self.steps(cols) > 1 { 4 } else { self.rows }
    }

    /// Workgroups of a product, and tiles of each.
    pub(super) fn groups_and_passes(&self, rows: usize, cols: usize) -> (u32, u32) {
        let all = (rows as u32).div_ceil(self.rows_at_once(cols));
        let passes = all.div_ceil(self.groups);
        (all.div_ceil(passes), passes)
    }

    /// True if the device and the shape allow this choice.
    pub fn is_supported(&self, caps: &Caps, shape: &ChainShape) -> bool {
        let is_compiled = caps.chains && caps.packed_dot && (caps.narrow_chains || self.workgroup > NARROW);
        let is_possible = is_compiled && caps.max_bindings as usize >= shape.kernel().bindings.len();
        let lanes = cluster(caps).filter(|_| is_possible);
        let has_lanes = lanes.is_some_and(|lanes| {
            self.workgroup.is_multiple_of(lanes) && self.rows <= lanes && self.workgroup / lanes <= MOST_PARTS
        });
        let fit = |heads: Heads| [0, usize::MAX].into_iter().all(|keys| self.teams(caps, heads, keys).is_some());
        // Scales are read in pairs, which must not straddle rows.
        let is_whole = |&(_, cols): &(usize, usize)| cols.is_multiple_of(64) && self.steps(cols) <= MOST_STEPS;
        has_lanes && shape.heads.is_none_or(fit) && shape.products().iter().all(is_whole)
    }

    /// The teams of attention over `keys` keys.
    pub(super) fn teams(&self, caps: &Caps, heads: Heads, keys: usize) -> Option<Teams> {
        let (most_heads, at_once) = if keys <= UNSPLIT_KEYS { FEW_KEYS } else { MANY_KEYS };
        let teams = |heads| Teams { workgroup: self.workgroup, heads, keys: at_once };
        let fits = |teams: &Teams| teams.are_supported(caps, heads.group(), heads.head_dim);
        (1..=most_heads).rev().map(teams).find(fits)
    }

    /// Ranges of `keys` keys, and keys of each range.
    pub(super) fn splits(&self, keys: usize) -> (usize, usize) {
        let wanted = if keys <= UNSPLIT_KEYS { 1 } else { keys.div_ceil(self.range as usize).min(MOST_SPLITS) };
        let range = keys.div_ceil(wanted).max(1);
        (keys.div_ceil(range).max(1), range)
    }

    /// Workgroups of the stage that joins `splits` ranges.
    pub(super) fn joins(&self, caps: &Caps, heads: Heads, splits: usize) -> u32 {
        let joiners = 1 << join_bits(caps);
        let lanes = heads.heads * heads.head_dim / 4 * joiners;
        if splits > 1 { lanes.div_ceil(self.workgroup as usize) as u32 } else { 0 }
    }

    /// The variant for a shape, and for attention over `keys` keys in a pool of `dtype`.
    pub(super) fn variant(&self, caps: &Caps, shape: &ChainShape, keys: usize, dtype: KvDtype) -> Variant {
        let lanes = cluster(caps).expect("the device supports the chain");
        let (first, products) = (shape.first(), shape.products());
        let stages = first + products.len();
        let mut variant = Variant::new()
            .weights_in_parts(FORMAT, 2)
            .constant_is("WORKGROUP", self.workgroup)
            .constant_is("FIRST", first as u32)
            .constant_is("STAGES", stages as u32)
            .constant_is("PARTS", self.workgroup / lanes)
            .constant_is("PENDING", PENDING)
            .constant_is("POLLS_TO_CHECK", POLLS_TO_CHECK)
            .constant_is("EXPIRED", EXPIRED as u32)
            .constant_is("TICKET", TICKET as u32)
            .constant_is("VALUES", VALUES as u32)
            .flag("INTEGER")
            .flag("OWN_LOADS")
            .flag_if("START", shape.end.is_none())
            .flag_if("SQUARES2", shape.heads.is_none())
            .subgroups(caps);
        if let Some(heads) = shape.heads {
            let teams = self.teams(caps, heads, keys).expect("the device supports the chain");
            variant = dtype
                .flag(variant)
                .flag("ATTENTION")
                .flag("TURNED3")
                .constant_is("HEAD_DIM", heads.head_dim as u32)
                .constant_is("EIGHTS", heads.head_dim as u32 / 8)
                .constant_is("GROUP", heads.group() as u32)
                .constant_is("JOIN_BITS", join_bits(caps));
            variant = teams.lanes(variant, heads.head_dim);
        }
        for (stage, (_, cols)) in (first..).zip(products) {
            let (steps, rows) = (self.steps(cols), self.rows_at_once(cols));
            let names = &NAMES[stage];
            variant = variant
                .constant_is(names.steps, steps)
                .constant_is(names.rows, rows)
                .flag_if(names.exact, cols / HALF == (steps * self.workgroup) as usize)
                .flag_if(names.eight, rows == 8)
                .flag_if(names.from_x, stage == first)
                .flag(names.kind);
        }
        variant
    }
}

/// Lanes of a cluster, see shared/invocation.wgsl.
fn cluster(caps: &Caps) -> Option<u32> {
    caps.subgroups.map(|sizes| sizes.min)
}

/// Bits of the number of lanes that join the same dims.
fn join_bits(caps: &Caps) -> u32 {
    cluster(caps).map_or(0, |lanes| lanes.ilog2().min(3))
}

/// Candidates for autotuning, without separate dispatches: workgroups with a lane per block of the residual stream, or of usual sizes, and
/// numbers of workgroups for small and large devices.
pub(super) fn chains(caps: &Caps, shape: &ChainShape) -> Vec<ChainChoice> {
    let whole = (shape.hidden / HALF) as u32;
    let mut all = Vec::new();
    for workgroup in [whole, 128, 256].into_iter().filter(|lanes| (64..=256).contains(lanes)) {
        all.extend([264, 300, 396, 128, 64, 32].map(|groups| ChainChoice { workgroup, rows: 8, groups, range: RANGE }));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|choice| choice.is_supported(caps, shape) && seen.insert(*choice));
    all
}
