//! How a row's attention is divided on the device: [`DecodeChoice`], and [`choices`], all that fit.

use crate::{
    KvDtype, Variant,
    gpu::Caps,
    tuning::{AttentionDecodeChoice, Choice, Teams},
};

use super::{DECODE_KEYS, ENOUGH_GROUPS, MAX_SPLITS, workgroup_heads};

/// How few rows attend: by which kernel, and in how many parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeChoice {
    /// `None`: `attention_decode`.
    pub teams: Option<Teams>,
    /// Workgroups that share the keys of a row and of its heads.
    pub splits: usize,
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeShape {
    /// Rows.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Keys that are seen, those of all rows together.
    pub keys: usize,
    /// How they are stored.
    pub dtype: KvDtype,
}

/// Values of a workgroup's parts, in workgroup memory, that every device has room for.
const MOST_PARTS: u32 = 3584;
/// Heads times keys from which on a driver needs [`Caps::wide_teams`].
const WIDE: u32 = 32;
/// Keys up to which nothing is divided: joining is a dispatch of its own. Heads are, then, as measured on an H200.
pub(crate) const UNSPLIT_KEYS: usize = 256;
/// Fewest keys of a range, of a longer context, and splits that are enough until their ranges are of [`LONG_RANGE`].
const FEWEST_KEYS: usize = 64;
const FEW_SPLITS: usize = 16;
const LONG_RANGE: usize = 256;

impl Teams {
    /// Whether the device and the heads allow it.
    pub(crate) fn suits(&self, caps: &Caps, group: usize, head_dim: usize) -> bool {
        let Some(lanes) = caps.subgroups.map(|sizes| sizes.min) else { return false };
        head_dim.is_multiple_of(8)
            && team(head_dim) <= lanes
            && self.workgroup.is_multiple_of(lanes)
            && group.is_multiple_of(self.heads as usize)
            && self.workgroup / lanes * self.heads * head_dim as u32 <= MOST_PARTS
            && (caps.wide_teams || self.heads * self.keys < WIDE)
    }

    /// Teams of a workgroup.
    pub(crate) fn count(&self, head_dim: usize) -> usize {
        (self.workgroup / team(head_dim)) as usize
    }

    /// The part of the variant that is the choice's.
    pub(super) fn variant(&self, variant: Variant, caps: &Caps, head_dim: usize) -> Variant {
        self.lanes(variant.constant_is("WORKGROUP", self.workgroup).subgroups(caps), head_dim)
    }

    /// The part of it that shared/team_attention.wgsl asks for, beside the workgroup and its subgroups.
    pub(crate) fn lanes(&self, variant: Variant, head_dim: usize) -> Variant {
        variant
            .constant_is("HEADS", self.heads)
            .constant_is("KEYS", self.keys)
            .constant_is("TEAM_BITS", team(head_dim).ilog2())
    }
}

/// Lanes of a team, one for each eight dims of a head or more.
fn team(head_dim: usize) -> u32 {
    (head_dim as u32).div_ceil(8).next_power_of_two()
}

impl DecodeShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Workgroups where a row's keys are not divided.
    fn groups(&self, heads: usize) -> usize {
        self.rows * self.heads / heads
    }

    /// Ranges that the keys are divided in where so many workgroups are enough.
    fn splits(&self, teams: Option<Teams>, groups: usize) -> usize {
        let (heads, most) = match teams {
            Some(_) if self.keys <= UNSPLIT_KEYS => return 1,
            Some(teams) => {
                let most = self.keys.div_ceil(FEWEST_KEYS).min(FEW_SPLITS.max(self.keys / LONG_RANGE));
                (teams.heads as usize, most)
            }
            None => (workgroup_heads(self.group(), self.head_dim), self.keys.div_ceil(DECODE_KEYS)),
        };
        most.min(groups.div_ceil(self.groups(heads))).clamp(1, MAX_SPLITS)
    }

    /// A tuned choice, applied to this shape.
    pub(super) fn choice(&self, AttentionDecodeChoice { groups, mut teams }: AttentionDecodeChoice) -> DecodeChoice {
        let splits = self.splits(teams, groups as usize);
        if let Some(teams) = &mut teams
            && self.keys <= UNSPLIT_KEYS
        {
            // What fits with more heads fits with one.
            *teams = Teams { heads: 1, keys: 8, ..*teams };
        }
        DecodeChoice { teams, splits }
    }

    /// Keys of each of so many ranges that the keys are divided in; the last may have fewer.
    pub(super) fn split_keys(&self, choice: DecodeChoice) -> usize {
        let step = choice.teams.map_or(DECODE_KEYS, |teams| teams.count(self.head_dim));
        self.keys.div_ceil(choice.splits).next_multiple_of(step)
    }
}

/// Every way that the device and the shape allow, the one that is taken where nothing is known of the device first.
pub fn choices(caps: &Caps, shape: &DecodeShape) -> Vec<DecodeChoice> {
    let own = shape.choice(candidates(caps, shape.group(), shape.head_dim)[0].get());
    let of_teams = all_teams(caps, shape.group(), shape.head_dim).into_iter().flat_map(|teams| {
        let splits = shape.splits(Some(teams), ENOUGH_GROUPS);
        around(splits, shape.keys).map(move |splits| DecodeChoice { teams: Some(teams), splits })
    });
    let without = DecodeChoice { teams: None, splits: shape.splits(None, ENOUGH_GROUPS) };
    let others = of_teams.chain([without]).filter(|choice| *choice != own);
    std::iter::once(own).chain(others).collect()
}

/// Every form that the device and the heads allow, the one that is taken where nothing is known of the device first.
fn all_teams(caps: &Caps, group: usize, head_dim: usize) -> Vec<Teams> {
    let mut all = Vec::new();
    for workgroup in [256, 128, 64] {
        for heads in (1..=4).rev() {
            all.extend([4, 2, 8].map(|keys| Teams { workgroup, heads, keys }));
        }
    }
    // A software device has no use for lanes that share a key.
    all.retain(|teams| !caps.is_software && teams.suits(caps, group, head_dim));
    all
}

/// The candidates of autotuning, the default first.
pub(super) fn candidates(caps: &Caps, group: usize, head_dim: usize) -> Vec<Choice> {
    let choice = |groups: usize, teams| Choice::from(AttentionDecodeChoice { groups: groups as u32, teams });
    let mut all = Vec::new();
    for (i, teams) in all_teams(caps, group, head_dim).into_iter().enumerate().take(TRIED) {
        let groups: &[usize] = if i == 0 { &GROUPS } else { &GROUPS[..1] };
        all.extend(groups.iter().map(|&groups| choice(groups, Some(teams))));
    }
    all.extend(GROUPS.map(|groups| choice(groups, None)));
    all
}

/// Numbers of workgroups that may be enough, the one for large devices first.
const GROUPS: [usize; 4] = [ENOUGH_GROUPS, 64, 128, 512];
/// Forms of teams that are tried on a user's device.
const TRIED: usize = 8;

/// Numbers of splits that are worth a try, the first one first.
fn around(splits: usize, keys: usize) -> impl Iterator<Item = usize> {
    let splits = splits.clamp(1, MAX_SPLITS);
    let others = [splits / 2, 2 * splits, if splits == 1 { 4 } else { 1 }];
    let fits = move |&other: &usize| other >= 1 && other != splits && other <= MAX_SPLITS && keys / other >= 16;
    [splits].into_iter().chain(others.into_iter().filter(fits))
}
