//! Records attention of few rows of each of any number of sequences: [`FewRows::record`].

use super::{
    AttentionShape, Buffers, DECODE_KERNEL, DECODE_TUNABLE, DecodeChoice, DecodeParams, REDUCE_KERNEL, ReduceParams,
    TEAMS_KERNEL,
    teams::{DECODE_KEYS, FewRows, workgroup_heads},
};
use crate::{
    KvDtype, Variant,
    gpu::{Buffer, Caps, Gpu, Recorder},
    kernel::product,
    kv::{DeviceSpan, padded},
    tuning::{AttentionDecodeChoice, Problem},
};

/// Eights of a key, and values, that a lane of the decode kernel loads at a time.
const DECODE_LOADS: usize = 8;
/// Splits that a lane of the reduce kernel loads at a time.
const REDUCE_LOADS: usize = 8;

impl FewRows {
    /// The choice of a device.
    pub fn choice(&self, gpu: &Gpu) -> DecodeChoice {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let problem = Problem::new(&DECODE_TUNABLE, None, [heads, kv_heads, head_dim]);
        let mut chosen: AttentionDecodeChoice = gpu.choice(problem).get();
        if gpu.is_off(TEAMS_KERNEL.name) {
            chosen.teams = None;
        }
        self.decode_choice(chosen)
    }

    /// Records the rows of consecutive spans.
    pub fn record(
        shape: AttentionShape,
        spans: &[DeviceSpan],
        recorder: &mut Recorder,
        buffers: Buffers<'_>,
        choice: DecodeChoice,
    ) {
        let AttentionShape { heads, head_dim, .. } = shape;
        let all = FewRows::of(shape, spans);
        // Keys of a split are rounded up, so there may be fewer splits.
        let splits = all.keys.div_ceil(all.split_keys(choice));
        let choice = DecodeChoice { splits, ..choice };
        let first_row = spans[0].first_row;
        for range in recorder.row_ranges(all.rows, product(&[4, all.keys, heads, head_dim]), 1) {
            let range = first_row + range.start..first_row + range.end;
            let parts = spans.iter().filter_map(|span| span.within(&range));
            let pairs = parts.clone().map(|part| part.rows * shape.seen_at(part.past_len + part.rows - 1)).sum();
            recorder.expect_work(&[4, pairs, heads, head_dim]);
            let rows = FewRows { rows: range.len(), ..all };
            let bytes = buffers.pool.bytes_of(parts.map(|part| shape.seen_by(&part)).sum());
            if splits == 1 {
                recorder.expect_bytes(bytes);
                rows.record_splits(recorder, buffers, range.start, buffers.y, choice);
                continue;
            }
            let parts = recorder.temporary(range.len() * heads * splits * (head_dim + 2));
            recorder.expect_bytes(bytes);
            rows.record_splits(recorder, buffers, range.start, &parts, choice);
            let reduce = Reduce { first_row: range.start, rows: range.len(), heads, splits };
            reduce.record(recorder, head_dim, &parts, buffers.y);
        }
    }

    /// Attention of the rows from `first_row` on. `y`: the output, or the results of all splits.
    fn record_splits(
        &self,
        recorder: &mut Recorder,
        Buffers { q, pool, rows, .. }: Buffers<'_>,
        first_row: usize,
        y: &Buffer<f32>,
        choice: DecodeChoice,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, scale, soft_cap, .. } = self.shape;
        let in_group = choice.teams.map_or(workgroup_heads(self.shape.group(), head_dim), |teams| teams.heads as usize);
        let groups = self.rows * heads / in_group * choice.splits;
        let params = DecodeParams {
            rows: self.rows as u32,
            first_row: first_row as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            splits: choice.splits as u32,
            groups: groups as u32,
            window: self.shape.window_words(),
            scale,
            soft_cap: soft_cap.unwrap_or_default(),
        };
        let variant = decode_variant(&self.shape, recorder.gpu().caps(), pool.dtype, choice);
        let kernel = if choice.teams.is_some() { &TEAMS_KERNEL } else { &DECODE_KERNEL };
        let buffers = [q.into(), (&pool.kv).into(), (&rows.words).into(), y.into()];
        recorder.dispatch(kernel, &variant, &params, &buffers, groups);
    }
}

pub(super) fn decode_variant(shape: &AttentionShape, caps: &Caps, dtype: KvDtype, choice: DecodeChoice) -> Variant {
    let (variant, head_dim) = (shape.variant(dtype), shape.head_dim);
    if let Some(teams) = choice.teams {
        return teams.variant(variant.flag_if("SPLIT_K", choice.splits > 1), caps, head_dim);
    }
    let eights = padded(head_dim) / 8;
    // Loads of a software device do not overlap, and its compiler is slow on long functions.
    let most = if caps.is_software { 1 } else { DECODE_LOADS };
    let key_eights = (1..=most).rev().find(|&few| eights.is_multiple_of(few)).unwrap_or(1);
    variant
        .constant_is("WORKGROUP", DECODE_KEYS as u32)
        .constant_is("HEADS", workgroup_heads(shape.group(), head_dim) as u32)
        .constant_is("KEY_EIGHTS", key_eights as u32)
        .constant_is("VALUES", most as u32)
}

/// The reduction of split-K.
pub(super) struct Reduce {
    pub first_row: usize,
    pub rows: usize,
    pub heads: usize,
    pub splits: usize,
}

impl Reduce {
    pub fn record(&self, recorder: &mut Recorder, head_dim: usize, parts: &Buffer<f32>, y: &Buffer<f32>) {
        let groups = self.rows * self.heads;
        let params = ReduceParams {
            first_row: self.first_row as u32,
            heads: self.heads as u32,
            splits: self.splits as u32,
            groups: groups as u32,
        };
        recorder.expect_bytes(4 * (groups * (self.splits * (head_dim + 2) + head_dim)) as u64);
        recorder.dispatch(&REDUCE_KERNEL, &reduce_variant(head_dim), &params, &[parts.into(), y.into()], groups);
    }
}

pub(super) fn reduce_variant(head_dim: usize) -> Variant {
    let lanes = head_dim.next_power_of_two().clamp(32, 256);
    Variant::new()
        .constant_is("WORKGROUP", lanes as u32)
        .constant_is("HEAD_DIM", head_dim as u32)
        .constant_is("STEPS", REDUCE_LOADS as u32)
}
