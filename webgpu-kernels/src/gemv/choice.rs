//! How a product of one row is divided among lanes: the default [`GemvChoice`], the candidates of autotuning, and the shader
//! variant of each.

use crate::{
    Variant, WeightFormat,
    gpu::{Caps, SubgroupSizes},
    tuning::{GemvChoice, Team},
};

/// Operation fused with the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemvKind {
    /// None.
    Plain,
    /// [`super::GemvAdd`].
    Add,
    /// [`super::GemvScaled`].
    Scaled,
    /// [`super::GemvScaled`] with the gated activation.
    Swiglu,
    /// [`super::GemvRope`].
    Rope,
}

/// The shape that a choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GemvShape {
    /// Storage of the weights.
    pub format: WeightFormat,
    /// Rows of the whole matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Rows of `x`.
    pub batch: usize,
    /// The fused operation.
    pub kind: GemvKind,
}

/// Most clusters of a workgroup for the butterfly reduction, if subgroups may be larger than a cluster. Above it, `subgroupAdd`
/// leaves fewer partial sums to add.
const MOST_CLUSTERS: u32 = 16;
/// Most bytes of partial sums: a little less than WebGPU's default limit.
const PARTS_BYTES: u32 = 15_872;
/// Longest row of `x` that fits in workgroup memory on every device.
const SHARED_COLS: usize = 3584;

impl GemvShape {
    /// Blocks of a row. A lane loads a whole block.
    pub(super) fn blocks(&self, choice: &GemvChoice) -> usize {
        self.format.blocks(self.cols) * choice.lanes_per_group as usize
    }

    /// True for four-bit codes in groups of 32. Only these groups can be shared by lanes, or multiplied as bytes.
    fn has_nibbles(&self) -> bool {
        matches!(self.format, WeightFormat::Group { bits: 4, group_size: 32 })
    }

    /// True if each output needs two rows.
    pub(super) fn has_pairs(&self) -> bool {
        matches!(self.kind, GemvKind::Swiglu | GemvKind::Rope)
    }
}

impl GemvChoice {
    fn has_subgroup_teams(&self) -> bool {
        self.team == Team::Subgroup
    }

    /// Lanes of a team.
    fn team_lanes(&self, caps: &Caps) -> u32 {
        match caps.subgroups {
            Some(sizes) if self.has_subgroup_teams() => sizes.min,
            _ => self.workgroup,
        }
    }

    /// Largest allowed NMSE of a case.
    pub(super) fn tolerance(&self) -> f64 {
        // The fixed-point unit of `x` is 2^-15 of the largest value of its block.
        if self.integer { 1e-8 } else { 1e-10 }
    }

    /// Matrix rows per workgroup.
    pub(super) fn workgroup_rows(&self, caps: &Caps) -> usize {
        (self.workgroup / self.team_lanes(caps) * self.rows) as usize
    }

    /// True if the device and the shape allow this choice.
    pub(super) fn is_allowed(&self, caps: &Caps, shape: &GemvShape) -> bool {
        let teams_fit = !self.has_subgroup_teams()
            || caps.subgroups.is_some_and(|SubgroupSizes { min: lanes, .. }| {
                // Each total of a team has a lane.
                self.workgroup.is_multiple_of(lanes) && self.rows * shape.batch as u32 <= lanes
            });
        let rows = match shape.kind {
            GemvKind::Rope => self.rows.is_multiple_of(4),
            GemvKind::Swiglu => self.rows.is_multiple_of(2),
            _ => true,
        };
        // Each output of a team, and the sum of squares, needs a lane that adds up its partial sums.
        let sums_fit = self.has_subgroup_teams() || self.rows * shape.batch as u32 + 1 < self.workgroup;
        let shared = !self.shared_x || shape.batch == 1 && shape.cols <= SHARED_COLS;
        let integer = !self.integer || caps.packed_dot && shape.has_nibbles() && !self.shared_x;
        // Partial sums lie in workgroup memory: one set per subgroup, or one per lane.
        let parts = caps.subgroups.map_or(self.workgroup, |sizes| self.workgroup.div_ceil(sizes.min));
        let memory = self.has_subgroup_teams() || 4 * parts * (self.rows * shape.batch as u32 + 1) <= PARTS_BYTES;
        teams_fit && rows && sums_fit && shared && integer && memory
    }

    /// The shader variant for a shape. `parts`: partial sums of squares, 0 without a norm.
    pub(super) fn variant(&self, caps: &Caps, shape: &GemvShape, parts: usize) -> Variant {
        let GemvShape { format, cols, batch, kind, .. } = *shape;
        let (blocks, team) = (shape.blocks(self), self.team_lanes(caps) as usize);
        let at_once = team * self.steps as usize;
        let is_whole = cols.is_multiple_of(format.block_size());
        let variant = Variant::new()
            .weights_in_parts(format, self.lanes_per_group)
            .constant_is("WORKGROUP", self.workgroup)
            .constant_is("STEPS", self.steps)
            .constant_is("ROWS", self.rows)
            .constant_is("BATCH", batch as u32)
            .flag_if("ONCE", blocks <= at_once)
            .flag_if("EXACT", is_whole && blocks.is_multiple_of(at_once))
            .flag_if("RAGGED", !cols.is_multiple_of(4))
            .flag_if("TEAMS", self.has_subgroup_teams())
            .flag_if("INTEGER", self.integer)
            .flag_if("PAIRS", shape.has_pairs())
            .flag_if("SWIGLU", kind == GemvKind::Swiglu)
            .subgroups(caps);
        let variant = match kind {
            GemvKind::Plain | GemvKind::Add => variant,
            _ => variant.flag("SCALED").constant_is("SQUARES", parts.div_ceil(4).div_ceil(team) as u32),
        };
        // The butterfly reduction exchanges values with every lane of a cluster, so clusters must be full.
        let is_full = |sizes: SubgroupSizes| {
            let clusters = self.workgroup / sizes.min;
            let are_few = self.has_subgroup_teams() || sizes.fixed().is_some() || clusters <= MOST_CLUSTERS;
            self.workgroup.is_multiple_of(sizes.min) && self.rows * batch as u32 <= sizes.min && are_few
        };
        let has_butterfly = matches!(self.rows, 4 | 8) && caps.subgroups.is_some_and(is_full);
        let variant = variant
            .flag_if("BUTTERFLY", has_butterfly)
            .flag_if("CLUSTER_TOTALS", has_butterfly || self.has_subgroup_teams())
            .flag_if("EIGHT", has_butterfly && self.rows == 8);
        let variant = if self.integer { variant.constant_is("X_WORDS", 4 / self.lanes_per_group) } else { variant };
        if self.shared_x { variant.flag("SHARED_X").constant_is("X_BLOCKS", blocks as u32) } else { variant }
    }
}

/// The default choice.
pub(super) fn default_choice(caps: &Caps, shape: &GemvShape) -> GemvChoice {
    let whole = GemvChoice {
        workgroup: 64,
        team: Team::Workgroup,
        rows: 4,
        steps: 1,
        lanes_per_group: shape.format.lane_parts(),
        shared_x: false,
        integer: false,
    };
    // With more rows of `x`, registers hold no more blocks, and workgroup memory has no room for the sums of more lanes.
    let blocks = shape.blocks(&whole);
    if shape.batch > 1 {
        // Measured on an H200: one lane per block. With three or four rows of `x`, more rows of the matrix share each load of `x`.
        if caps.subgroups.is_some_and(|sizes| sizes.fixed().is_some() && (16..=32).contains(&sizes.max)) {
            let rows = if (3..=4).contains(&shape.batch) { 8 } else { 4 };
            return GemvChoice { workgroup: blocks.next_multiple_of(32).min(256) as u32, rows, ..whole };
        }
        return whole;
    }
    // Measured on an H200, for subgroups of up to 32 lanes. A matrix with many rows gets one subgroup per few rows, another matrix
    // one lane per block.
    if caps.subgroups.is_some_and(|sizes| sizes.max <= 32) {
        let workgroup = if shape.rows >= MANY_ROWS { 32 } else { blocks.next_multiple_of(32).min(256) as u32 };
        return GemvChoice { workgroup, ..whole };
    }
    let steps = 2;
    let workgroup = blocks.div_ceil(steps).next_multiple_of(32).min(256) as u32;
    GemvChoice { workgroup, steps: steps as u32, ..whole }
}

/// From this many rows on, one subgroup per few rows keeps a large device busy.
const MANY_ROWS: usize = 8192;

/// All choices to time in a benchmark, the default first.
pub fn choices(caps: &Caps, shape: &GemvShape) -> Vec<GemvChoice> {
    let mut all = vec![default_choice(caps, shape)];
    let lane_counts: &[u32] = if shape.has_nibbles() { &[2, 1, 4] } else { &[shape.format.lane_parts()] };
    if shape.batch == 1 {
        for (&lanes_per_group, integer) in lane_counts.iter().flat_map(|lanes| [(lanes, true), (lanes, false)]) {
            for (rows, shared_x) in [(4, false), (8, false), (2, false), (4, true), (2, true), (8, true)] {
                let of = |workgroup, team| GemvChoice {
                    workgroup,
                    team,
                    rows,
                    steps: 1,
                    lanes_per_group,
                    shared_x,
                    integer,
                };
                let subgroups = [64, 128, 256].map(|workgroup| of(workgroup, Team::Subgroup));
                let workgroups = [32, 64, 96, 128, 192, 256].map(|workgroup| of(workgroup, Team::Workgroup));
                let workgroups = workgroups.into_iter().filter(|_| !shared_x);
                all.extend(subgroups.into_iter().chain(workgroups).flat_map(|choice| with_steps(caps, shape, choice)));
            }
        }
    }
    distinct(caps, shape, all)
}

/// The candidates of autotuning on a user's device, the default first.
pub(super) fn candidates(caps: &Caps, shape: &GemvShape) -> Vec<GemvChoice> {
    let default = default_choice(caps, shape);
    let mut all = vec![default];
    if shape.batch == 1 {
        let half = (default.workgroup / 2).next_multiple_of(32);
        all.extend([
            GemvChoice { workgroup: (2 * default.workgroup).min(256), steps: 1, ..default },
            GemvChoice { rows: 8, steps: 1, ..default },
            GemvChoice { workgroup: half, ..default },
            GemvChoice { workgroup: half, rows: 8, ..default },
        ]);
        // One lane per block, up to `most` lanes, and small workgroups that walk along a row.
        for (lanes_per_group, rows, most) in
            [(2, 8, 256), (2, 4, 256), (1, 8, 256), (4, 8, 256), (2, 8, 64), (2, 4, 32)]
        {
            let integer = GemvChoice { lanes_per_group, rows, integer: true, ..default };
            let blocks = shape.blocks(&integer);
            let workgroup = blocks.next_multiple_of(32).min(most) as u32;
            let steps = if blocks.div_ceil(workgroup as usize) == 2 { 2 } else { 1 };
            all.push(GemvChoice { workgroup, steps, ..integer });
        }
        for (workgroup, rows, shared_x) in [(64, 4, false), (128, 4, false), (256, 4, true), (64, 8, false)] {
            let choice = GemvChoice { workgroup, rows, shared_x, team: Team::Subgroup, steps: 1, ..default };
            all.extend(with_steps(caps, shape, choice).pop());
        }
    } else {
        // One lane per block, up to 256 lanes.
        let whole = shape.blocks(&default).next_multiple_of(32).min(256) as u32;
        for (workgroup, rows) in
            [(whole, 4), (whole, 8), (whole, 2), (32, 4), (128, 4), (32, 8), (64, 8), (128, 8), (96, 4)]
        {
            let choice = GemvChoice { workgroup, rows, ..default };
            all.extend([choice, GemvChoice { integer: true, ..choice }]);
        }
        for (workgroup, rows) in [(64, 4), (128, 4), (64, 8)] {
            all.push(GemvChoice { workgroup, rows, team: Team::Subgroup, ..default });
        }
    }
    distinct(caps, shape, all)
}

/// The allowed choices without duplicates.
fn distinct(caps: &Caps, shape: &GemvShape, all: Vec<GemvChoice>) -> Vec<GemvChoice> {
    let mut kept: Vec<GemvChoice> = Vec::new();
    for choice in all {
        if choice.is_allowed(caps, shape) && !kept.contains(&choice) {
            kept.push(choice);
        }
    }
    kept
}

/// Words of weights that a lane may have in flight. Fewer do not hide memory latency; more do not fit in registers.
const WORDS: std::ops::RangeInclusive<u32> = 8..=48;

/// `choice` with each number of steps that divides a row evenly.
fn with_steps(caps: &Caps, shape: &GemvShape, choice: GemvChoice) -> Vec<GemvChoice> {
    let lanes = choice.team_lanes(caps) as usize;
    let rounds = shape.blocks(&choice) / lanes;
    let is_even = shape.blocks(&choice).is_multiple_of(lanes);
    let fits = |&steps: &u32| {
        let words = steps * choice.rows * 4 / choice.lanes_per_group;
        is_even && rounds.is_multiple_of(steps as usize) && WORDS.contains(&words)
    };
    (1..=12).filter(fits).map(|steps| GemvChoice { steps, ..choice }).collect()
}
