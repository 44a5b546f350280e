//! [`SampleRows`]: draws a token from each of some rows of logits, in one dispatch per stage for all of them.
//!
//! The rules of the rows travel in a buffer, one [`RowRules`] per row. A stage has a workgroup for each row and chunk, or in the last stage
//! for each row. Workgroups of a row that does not need the stage return early. Results of a row do not depend on the other rows.
//!
//! Only histories are separate buffers. So a row with a history has two dispatches of its own: the one that applies penalties, and the one
//! that adds the drawn token to the history.

use super::{
    ADJUST_KERNEL, COUNT_KERNEL, CountParams, DRAW_KERNEL, LEVEL_WORDS, LEVELS, SELECT_KERNEL, SPAN, Sample,
    SampleParams, WEIGH_KERNEL, adjust_variant, count_variant, variant,
};
use crate::{
    argmax::Argmax,
    gpu::{Buffer, Recorder},
};

/// Draws a token from each of some rows of `cols` logits.
pub struct SampleRows<'a> {
    /// Columns.
    pub cols: usize,
    /// The rows, in order.
    pub rows: &'a [SampleRow<'a>],
}

/// How a row's token is chosen.
#[derive(Clone, Copy)]
pub struct SampleRow<'a> {
    /// The row's sampler, of as many columns. `None`: the most likely token, as [`Argmax`] chooses it. A sampler with a history may
    /// occur once.
    pub with: Option<&'a Sample>,
    /// Random number in 0..1. Greedy rows ignore it.
    pub random: f64,
}

/// A row's rules as the shaders read them: pieces/rows.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RowRules {
    /// 0: another kernel chooses the token.
    is_drawn: u32,
    has_history: u32,
    /// Levels of the search that the row needs: `first_level..last_level`.
    first_level: u32,
    last_level: u32,
    top_k: u32,
    /// 0: greedy.
    inverse_temperature: f32,
    top_p: f32,
    min_p: f32,
    random: f32,
    presence: f32,
    frequency: f32,
    repetition: f32,
}

impl RowRules {
    fn new(cols: usize, row: &SampleRow<'_>) -> RowRules {
        let Some(sample) = row.with else { return bytemuck::Zeroable::zeroed() };
        assert_eq!(sample.cols, cols, "sample: columns of a row's sampler");
        let rules = &sample.rules;
        let is_greedy = rules.temperature == 0.0;
        let (has_k, has_p) = (rules.top_k > 0 && rules.top_k < cols, rules.top_p < 1.0);
        let (first_level, last_level) = match (has_k, has_p) {
            _ if is_greedy => (0, 0),
            (false, false) => (0, 0),
            (true, false) => (0, 4),
            (false, true) => (4, LEVELS),
            (true, true) => (0, LEVELS),
        };
        RowRules {
            is_drawn: 1,
            has_history: u32::from(sample.history.is_some()),
            first_level: first_level as u32,
            last_level: last_level as u32,
            top_k: rules.top_k as u32,
            // Keep the inverse of a tiny temperature finite.
            inverse_temperature: if is_greedy { 0.0 } else { (1.0 / rules.temperature).min(1e30) },
            top_p: rules.top_p,
            min_p: rules.min_p,
            // The largest f32 below 1.
            random: (row.random as f32).min(1.0 - f32::EPSILON / 2.0),
            presence: rules.presence,
            frequency: rules.frequency,
            repetition: rules.repetition,
        }
    }

    fn needs_levels(&self) -> bool {
        self.first_level < self.last_level
    }
}

impl SampleRows<'_> {
    /// Draws the tokens and adds each to the history of its sampler. `x`: `[rows, cols]`. `y`: `[rows]`.
    ///
    /// Panics if a row's sampler is for another number of columns.
    pub fn record(&self, recorder: &mut Recorder, x: &Buffer<f32>, y: &Buffer<u32>) {
        let rows: Vec<RowRules> = self.rows.iter().map(|row| RowRules::new(self.cols, row)).collect();
        if rows.iter().any(|row| row.is_drawn == 0) {
            // Chooses for all rows. The tokens of drawn rows are replaced below.
            Argmax { rows: rows.len(), cols: self.cols }.record(recorder, x, y);
        }
        if rows.iter().any(|row| row.is_drawn == 1) {
            self.record_drawn(recorder, &rows, x, y);
        }
    }

    fn record_drawn(&self, recorder: &mut Recorder, rows: &[RowRules], x: &Buffer<f32>, y: &Buffer<u32>) {
        let (count, chunks) = (rows.len(), self.cols.div_ceil(SPAN));
        let rules: Buffer<u32> = recorder.upload(bytemuck::cast_slice(rows));
        let keys: Buffer<u32> = recorder.temporary(count * self.cols);
        let best: Buffer<u32> = recorder.temporary(2 * count * chunks);
        let levels: Buffer<u32> = recorder.temporary(count * LEVEL_WORDS);
        let sums: Buffer<f32> = recorder.temporary(2 * count * chunks);
        let params = |groups: usize, first_row: usize, level: u32| SampleParams {
            groups: groups as u32,
            first_row: first_row as u32,
            cols: self.cols as u32,
            chunks: chunks as u32,
            level,
        };
        let histories = || {
            let rows = self.rows.iter().enumerate();
            rows.filter_map(|(row, SampleRow { with, .. })| Some((row, with.as_ref()?.history.as_ref()?)))
        };
        let groups = count * chunks;

        if rows.iter().any(|row| row.is_drawn == 1 && row.has_history == 0) {
            let (keys, best, levels) = ((&keys).into(), (&best).into(), (&levels).into());
            let buffers = [(&rules).into(), x.into(), (&rules).into(), keys, best, levels];
            recorder.dispatch(&ADJUST_KERNEL, &adjust_variant(false), &params(groups, 0, 0), &buffers, groups);
        }
        for (row, history) in histories() {
            let (keys, best, levels) = ((&keys).into(), (&best).into(), (&levels).into());
            let buffers = [(&rules).into(), x.into(), history.into(), keys, best, levels];
            recorder.expect_bytes(16 * self.cols as u64);
            recorder.dispatch(&ADJUST_KERNEL, &adjust_variant(true), &params(chunks, row, 0), &buffers, chunks);
        }
        let needing = || rows.iter().filter(|row| row.needs_levels());
        let first = needing().map(|row| row.first_level).min().unwrap_or(0);
        let last = needing().map(|row| row.last_level).max().unwrap_or(0);
        for level in first..last {
            let buffers = [(&rules).into(), (&keys).into(), (&best).into(), (&levels).into()];
            recorder.dispatch(&SELECT_KERNEL, &variant(), &params(groups, 0, level), &buffers, groups);
        }
        if rows.iter().any(|row| row.inverse_temperature > 0.0) {
            let buffers = [(&rules).into(), (&keys).into(), (&best).into(), (&levels).into(), (&sums).into()];
            recorder.dispatch(&WEIGH_KERNEL, &variant(), &params(groups, 0, 0), &buffers, groups);
        }
        let (keys, best, levels, sums) = ((&keys).into(), (&best).into(), (&levels).into(), (&sums).into());
        let buffers = [(&rules).into(), keys, best, levels, sums, y.into()];
        recorder.expect_bytes(4 * (count * (SPAN + 4 * chunks)) as u64);
        recorder.dispatch(&DRAW_KERNEL, &variant(), &params(count, 0, 0), &buffers, count);
        for (row, history) in histories() {
            recorder.expect_bytes(12);
            let buffers = [y.into(), history.into()];
            recorder.dispatch(&COUNT_KERNEL, &count_variant(), &CountParams { row: row as u32 }, &buffers, 1);
        }
    }
}
