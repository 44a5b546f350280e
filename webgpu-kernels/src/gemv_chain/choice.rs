//! How the work of a chain is divided: [`ChainChoice`], by the [`ChainShape`].

use super::{
    ATTENTION_KERNEL, KERNEL, START_KERNEL, cases,
    links::{EXPIRED, PENDING, POLLS_TO_CHECK, TICKET, VALUES},
};
use crate::{
    Case, Kernel, KvDtype, Variant, WeightFormat,
    attention::UNSPLIT_KEYS,
    gpu::{Caps, Gpu},
    tuning::{ChainChoice, Choice, GemvChainChoice, Problem, Teams, Trial, Tunable},
};

/// Extents of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Of a chain that begins with the end of a layer.
    pub end: Option<EndShape>,
    /// Of a chain that ends with attention.
    pub heads: Option<Heads>,
}

/// Extents of the end of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndShape {
    /// Inputs of attention's output.
    pub attended: usize,
    /// Inputs of down.
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

/// The choice of all three kernels.
pub static TUNABLE: Tunable = Tunable {
    name: "gemv_chain",
    kernel: |problem| ChainShape::of(problem).kernel(),
    extents: &["hidden", "inner", "heads", "kv_heads", "head_dim"],
    candidates,
    trial,
};

/// What a chain is for.
pub(super) const FORMAT: WeightFormat = WeightFormat::Group { bits: 4, group_size: 32 };
/// Products of a chain at most.
pub(super) const PRODUCTS: usize = 4;
/// Ranges of keys at most.
pub(super) const MOST_SPLITS: usize = 32;
/// Weights that a lane loads at once.
pub(super) const HALF: usize = 16;
const MOST_STEPS: u32 = 4;
/// Clusters of a workgroup at most.
const MOST_PARTS: u32 = 64;
/// Lanes of a workgroup up to which each has so much of a wide product that some devices run out of registers.
const NARROW: u32 = 128;
/// Keys of a range, as measured on an H100.
const RANGE: u32 = 96;
/// Heads that a workgroup attends with at most, and keys that a team takes at a time. Few keys are not divided; heads are, then.
const MANY_KEYS: (u32, u32) = (3, 4);
const FEW_KEYS: (u32, u32) = (1, 8);

/// What the shader calls things of a product.
struct Names {
    steps: &'static str,
    rows: &'static str,
    exact: &'static str,
    eight: &'static str,
    first: &'static str,
    last: &'static str,
    flags: &'static [&'static str],
}

macro_rules! names {
    ($place:literal, $($flag:literal),*) => {
        Names {
            steps: concat!("STEPS", $place),
            rows: concat!("ROWS", $place),
            exact: concat!("EXACT", $place),
            eight: concat!("EIGHT", $place),
            first: concat!("FIRST", $place),
            last: concat!("LAST", $place),
            flags: &[$(concat!($flag, $place)),*],
        }
    };
}

const NAMES: [Names; PRODUCTS] = [names!(0, "ADD"), names!(1, "NORMED"), names!(2, "ADD"), names!(3, "NORMED", "ROPE")];

impl Heads {
    /// Query heads of a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows of queries, keys and values.
    pub(super) fn rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

impl ChainShape {
    /// Rows and inputs of each product; which of the four the first one is, [`ChainShape::first`] says.
    pub(super) fn products(&self) -> Vec<(usize, usize)> {
        let of_end = |EndShape { attended, inner }: EndShape| {
            [(self.hidden, attended), (2 * inner, self.hidden), (self.hidden, inner)]
        };
        let end = self.end.map(of_end);
        end.into_iter().flatten().chain(self.heads.map(|heads| (heads.rows(), self.hidden))).collect()
    }

    /// The first product.
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

    /// Values that stages publish where keys are divided in so many ranges.
    pub(super) fn link_values(&self, splits: usize) -> usize {
        let inputs: usize = self.products().iter().map(|(_, cols)| cols).skip(1).sum();
        let of_heads =
            |heads: Heads| heads.rows() + if splits > 1 { splits * heads.heads * (heads.head_dim + 2) } else { 0 };
        inputs + self.heads.map_or(0, of_heads)
    }

    /// How it is done on a device: `None` where single dispatches are to be taken.
    pub fn choice(&self, gpu: &Gpu) -> Option<ChainChoice> {
        if !gpu.caps().forward_progress || gpu.is_off(self.kernel().name) {
            return None;
        }
        gpu.choice(self.problem()).get::<GemvChainChoice>().chain
    }

    fn problem(&self) -> Problem {
        let inner = self.end.map_or(0, |end| end.inner);
        let [heads, kv_heads, head_dim] = match (self.heads, self.end) {
            (Some(Heads { heads, kv_heads, head_dim }), _) => [heads, kv_heads, head_dim],
            (None, Some(end)) => [1, 0, end.attended],
            (None, None) => [0; 3],
        };
        Problem::new(&TUNABLE, Some(FORMAT), [self.hidden, inner, heads, kv_heads, head_dim])
    }

    fn of(problem: &Problem) -> ChainShape {
        let [hidden, inner, heads, kv_heads, head_dim] = problem.sizes();
        ChainShape {
            hidden,
            end: (inner > 0).then_some(EndShape { attended: heads * head_dim, inner }),
            heads: (kv_heads > 0).then_some(Heads { heads, kv_heads, head_dim }),
        }
    }
}

impl ChainChoice {
    /// Half groups of a row that a lane has.
    fn steps(&self, cols: usize) -> u32 {
        (cols / HALF).div_ceil(self.workgroup as usize) as u32
    }

    /// Outputs of a workgroup at a time: fewer where a lane has more of each, for registers hold no more.
    fn rows_at_once(&self, cols: usize) -> u32 {
        if self.steps(cols) > 1 { 4 } else { self.rows }
    }

    /// Workgroups of a product, and how often each takes rows.
    pub(super) fn groups_and_passes(&self, rows: usize, cols: usize) -> (u32, u32) {
        let all = (rows as u32).div_ceil(self.rows_at_once(cols));
        let passes = all.div_ceil(self.groups);
        (all.div_ceil(passes), passes)
    }

    /// Whether the device and the shape allow it.
    pub fn suits(&self, caps: &Caps, shape: &ChainShape) -> bool {
        let is_compiled = caps.chains && caps.packed_dot && (caps.narrow_chains || self.workgroup > NARROW);
        let is_possible = is_compiled && caps.max_bindings as usize >= shape.kernel().bindings.len();
        let lanes = cluster(caps).filter(|_| is_possible);
        let has_lanes = lanes.is_some_and(|lanes| {
            self.workgroup.is_multiple_of(lanes) && self.rows <= lanes && self.workgroup / lanes <= MOST_PARTS
        });
        let fit = |heads: Heads| [0, usize::MAX].into_iter().all(|keys| self.teams(caps, heads, keys).is_some());
        // Scales are read as pairs, and pairs do not straddle rows.
        let is_whole = |&(_, cols): &(usize, usize)| cols.is_multiple_of(64) && self.steps(cols) <= MOST_STEPS;
        has_lanes && shape.heads.is_none_or(fit) && shape.products().iter().all(is_whole)
    }

    /// How attention to so many keys is divided among the lanes of a workgroup.
    pub(super) fn teams(&self, caps: &Caps, heads: Heads, keys: usize) -> Option<Teams> {
        let (most_heads, at_once) = if keys <= UNSPLIT_KEYS { FEW_KEYS } else { MANY_KEYS };
        let teams = |heads| Teams { workgroup: self.workgroup, heads, keys: at_once };
        let fits = |teams: &Teams| teams.suits(caps, heads.group(), heads.head_dim);
        (1..=most_heads).rev().map(teams).find(fits)
    }

    /// Ranges that so many keys are divided in, and keys of each.
    pub(super) fn splits(&self, keys: usize) -> (usize, usize) {
        let wanted = if keys <= UNSPLIT_KEYS { 1 } else { keys.div_ceil(self.range as usize).min(MOST_SPLITS) };
        let range = keys.div_ceil(wanted).max(1);
        (keys.div_ceil(range).max(1), range)
    }

    /// Workgroups that join what so many ranges came to.
    pub(super) fn joins(&self, caps: &Caps, heads: Heads, splits: usize) -> u32 {
        let joiners = 1 << join_bits(caps);
        let lanes = heads.heads * heads.head_dim / 4 * joiners;
        if splits > 1 { lanes.div_ceil(self.workgroup as usize) as u32 } else { 0 }
    }

    /// The variant for a shape; with attention to so many keys, stored so.
    pub(super) fn variant(&self, caps: &Caps, shape: &ChainShape, keys: usize, dtype: KvDtype) -> Variant {
        let lanes = cluster(caps).expect("a chain suits the device");
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
            .subgroups(caps);
        if let Some(heads) = shape.heads {
            let teams = self.teams(caps, heads, keys).expect("a chain suits the device");
            variant = dtype
                .flag(variant)
                .flag("ATTENTION")
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
                .flag_if(names.first, stage == first)
                .flag_if(names.last, stage + 1 == stages);
            variant = names.flags.iter().fold(variant, |variant, flag| variant.flag(flag));
        }
        variant
    }
}

/// Lanes of a cluster: shared/invocation.wgsl.
fn cluster(caps: &Caps) -> Option<u32> {
    caps.subgroups.map(|sizes| sizes.min)
}

/// Of the lanes that join what was found for the same dims.
fn join_bits(caps: &Caps) -> u32 {
    cluster(caps).map_or(0, |lanes| lanes.ilog2().min(3))
}

/// The choices that are worth a try, without that of doing without: a lane for each half group of the widths that there are, and
/// workgroups for few processors and for many.
pub(super) fn chains(caps: &Caps, shape: &ChainShape) -> Vec<ChainChoice> {
    let whole = (shape.hidden / HALF) as u32;
    let mut all = Vec::new();
    for workgroup in [whole, 128, 256].into_iter().filter(|lanes| (64..=256).contains(lanes)) {
        all.extend([264, 300, 396, 128, 64, 32].map(|groups| ChainChoice { workgroup, rows: 8, groups, range: RANGE }));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|choice| choice.suits(caps, shape) && seen.insert(*choice));
    all
}

fn candidates(caps: &Caps, problem: &Problem) -> Vec<Choice> {
    let chains = chains(caps, &ChainShape::of(problem)).into_iter().map(Some).filter(|_| caps.forward_progress);
    std::iter::once(None).chain(chains).map(|chain| GemvChainChoice { chain }.into()).collect()
}

fn trial(caps: &Caps, problem: &Problem, choice: Choice) -> Trial {
    let shape = ChainShape::of(problem);
    let GemvChainChoice { chain: choice } = choice.get();
    Trial {
        case: cases::case(caps, &shape, choice),
        lens: cases::lens(&shape),
        rotated: 0..2 * shape.products().len(),
        checks: cases::checks(caps, &shape, choice),
    }
}

/// Choices of a shape after so many tokens as cases, for whoever times them; that of single dispatches has no choice.
pub fn choice_cases(caps: &Caps, shape: &ChainShape, position: usize) -> Vec<(Option<ChainChoice>, Case)> {
    let all = std::iter::once(None).chain(chains(caps, shape).into_iter().map(Some));
    all.map(|choice| (choice, cases::case_after(caps, shape, position, choice))).collect()
}
