//! How few rows' attention is divided on the device: [`DecodeChoice`] for [`FewRows`], and [`choices`], every supported one.

use crate::{
    Variant,
    gpu::Caps,
    kv::{DeviceSpan, padded},
    tuning::{AttentionDecodeChoice, Choice, Teams},
};

use super::AttentionShape;

/// Few rows of each of some sequences, as far as the division of the work depends on them.
#[derive(Clone, Copy)]
pub(super) struct FewRows {
    /// Heads, scale and mask.
    pub shape: AttentionShape,
    /// Number of rows.
    pub rows: usize,
    /// Most keys that a row sees.
    pub keys: usize,
}

/// Kernel and splits of few rows' attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeChoice {
    /// The variant of `attention_teams`. `None`: the kernel is `attention_decode`.
    pub teams: Option<Teams>,
    /// Split-K: workgroups that share the keys of a row.
    pub splits: usize,
}

/// Lanes, and keys per tile, of the decode kernel.
pub(super) const DECODE_KEYS: usize = 128;
/// Most splits.
pub(super) const MAX_SPLITS: usize = 64;
/// Workgroups of the decode kernel that keep a large device busy.
pub(super) const ENOUGH_GROUPS: usize = 256;
/// Values in workgroup memory that every device has room for.
const MOST_VALUES: u32 = 3584;
/// From this product of heads and keys on, teams need [`Caps::wide_teams`].
const WIDE: u32 = 32;
/// Up to this many keys, skip split-K (its reduction is an extra dispatch) and use one head per workgroup. Measured on an H200.
pub(crate) const UNSPLIT_KEYS: usize = 256;
/// Fewest keys of a split.
const FEWEST_KEYS: usize = 64;
/// More splits than this have at least [`LONG_RANGE`] keys each.
const FEW_SPLITS: usize = 16;
const LONG_RANGE: usize = 256;

impl Teams {
    /// True if the device and the heads allow these teams. `group`: query heads of a key head.
    pub(crate) fn are_supported(&self, caps: &Caps, group: usize, head_dim: usize) -> bool {
        let Some(lanes) = caps.subgroups.map(|sizes| sizes.min) else { return false };
        head_dim.is_multiple_of(8)
            && team(head_dim) <= lanes
            && self.workgroup.is_multiple_of(lanes)
            && group.is_multiple_of(self.heads as usize)
            && self.workgroup / lanes * self.heads * head_dim as u32 <= MOST_VALUES
            && (caps.wide_teams || self.heads * self.keys < WIDE)
    }

    /// Teams of a workgroup.
    pub(crate) fn count(&self, head_dim: usize) -> usize {
        (self.workgroup / team(head_dim)) as usize
    }

    /// Adds the teams' constants and those of subgroups to a variant.
    pub(super) fn variant(&self, variant: Variant, caps: &Caps, head_dim: usize) -> Variant {
        self.lanes(variant.constant_is("WORKGROUP", self.workgroup).subgroups(caps), head_dim)
    }

    /// Adds the constants of shared/team_attention.wgsl, except those of the workgroup and of subgroups.
    pub(crate) fn lanes(&self, variant: Variant, head_dim: usize) -> Variant {
        variant
            .constant_is("HEADS", self.heads)
            .constant_is("KEYS", self.keys)
            .constant_is("TEAM_BITS", team(head_dim).ilog2())
    }
}

/// Lanes of a team: one for each eight dims of a head, rounded up to a power of two.
fn team(head_dim: usize) -> u32 {
    (head_dim as u32).div_ceil(8).next_power_of_two()
}

impl FewRows {
    /// The rows of consecutive spans.
    pub fn of(shape: AttentionShape, spans: &[DeviceSpan]) -> FewRows {
        let rows = spans.iter().map(|span| span.rows).sum();
        let keys = spans.iter().map(|span| shape.seen_at(span.past_len + span.rows - 1)).max().unwrap_or(0);
        FewRows { shape, rows, keys }
    }

    /// Workgroups without split-K, with so many heads each.
    fn groups(&self, heads: usize) -> usize {
        self.rows * self.shape.heads / heads
    }

    /// The number of splits that gives about `groups` workgroups.
    fn splits(&self, teams: Option<Teams>, groups: usize) -> usize {
        let keys = self.keys;
        let (heads, most) = match teams {
            Some(_) if keys <= UNSPLIT_KEYS => return 1,
            Some(teams) => {
                let most = keys.div_ceil(FEWEST_KEYS).min(FEW_SPLITS.max(keys / LONG_RANGE));
                (teams.heads as usize, most)
            }
            None => (workgroup_heads(self.shape.group(), self.shape.head_dim), keys.div_ceil(DECODE_KEYS)),
        };
        most.min(groups.div_ceil(self.groups(heads))).clamp(1, MAX_SPLITS)
    }

    /// A tuned choice, applied to these rows and keys.
    pub fn decode_choice(&self, AttentionDecodeChoice { groups, mut teams }: AttentionDecodeChoice) -> DecodeChoice {
        let splits = self.splits(teams, groups as usize);
        if let Some(teams) = &mut teams
            && self.keys <= UNSPLIT_KEYS
        {
            // If a device supports more heads, it supports one.
            *teams = Teams { heads: 1, keys: 8, ..*teams };
        }
        DecodeChoice { teams, splits }
    }

    /// Keys of a split of the longest row. key_range.wgsl does the same for each row.
    pub fn split_keys(&self, choice: DecodeChoice) -> usize {
        let step = choice.teams.map_or(DECODE_KEYS, |teams| teams.count(self.shape.head_dim));
        self.keys.div_ceil(choice.splits).next_multiple_of(step)
    }
}

/// Every choice that the device and the shape allow. The default comes first.
pub(super) fn choices(caps: &Caps, attention: &FewRows) -> Vec<DecodeChoice> {
    let (group, head_dim) = (attention.shape.group(), attention.shape.head_dim);
    let default = attention.decode_choice(candidates(caps, group, head_dim)[0].get());
    let of_teams = all_teams(caps, group, head_dim).into_iter().flat_map(|teams| {
        let splits = attention.splits(Some(teams), ENOUGH_GROUPS);
        around(splits, attention.keys).map(move |splits| DecodeChoice { teams: Some(teams), splits })
    });
    let without = DecodeChoice { teams: None, splits: attention.splits(None, ENOUGH_GROUPS) };
    let others = of_teams.chain([without]).filter(|choice| *choice != default);
    std::iter::once(default).chain(others).collect()
}

/// All teams that the device and the heads allow. The default comes first.
fn all_teams(caps: &Caps, group: usize, head_dim: usize) -> Vec<Teams> {
    let mut all = Vec::new();
    for workgroup in [256, 128, 64] {
        for heads in (1..=4).rev() {
            all.extend([4, 2, 8].map(|keys| Teams { workgroup, heads, keys }));
        }
    }
    // A software device gains nothing from lanes that share a key.
    all.retain(|teams| !caps.is_software && teams.are_supported(caps, group, head_dim));
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

/// Numbers of workgroups to aim for. The first is for large devices.
const GROUPS: [usize; 4] = [ENOUGH_GROUPS, 64, 128, 512];
/// Teams that autotuning tries.
const TRIED: usize = 8;

/// Numbers of splits to try. The default comes first.
fn around(splits: usize, keys: usize) -> impl Iterator<Item = usize> {
    let splits = splits.clamp(1, MAX_SPLITS);
    let others = [splits / 2, 2 * splits, if splits == 1 { 4 } else { 1 }];
    let fits = move |&other: &usize| other >= 1 && other != splits && other <= MAX_SPLITS && keys / other >= 16;
    [splits].into_iter().chain(others.into_iter().filter(fits))
}

/// Heads of a workgroup of the decode kernel: as many heads that share a key head as fit into workgroup memory.
pub(super) fn workgroup_heads(group: usize, head_dim: usize) -> usize {
    let fits = |heads: &usize| group.is_multiple_of(*heads) && heads * padded(head_dim) <= 1024;
    (1..=8).rev().find(fits).unwrap_or(1)
}
