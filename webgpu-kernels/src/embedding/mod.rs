//! `y[t, :] = scale * table[tokens[t], :]`: rows of the embedding table, dequantized.
//!
//! A table in slices needs one dispatch per slice. The slice with a token's row writes that token.

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant, WeightFormat,
    cases::{self, Random, all_formats, four_bits, random_matrix},
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Usage, params},
    matrix::Slice,
};

pub use reference::embedding;

/// `y[t, :] = scale * table[tokens[t], :]`.
pub struct Embedding {
    /// Number of tokens.
    pub tokens: usize,
    /// Factor on rows.
    pub scale: f32,
}

params! { struct EmbeddingParams { tokens: u32, first_row: u32, rows: u32, cols: u32, blocks: u32, scale: f32 } }

const WORKGROUP: usize = 64;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "embedding",
    wgsl: include_str!("embedding.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    params: EmbeddingParams::LAYOUT,
    cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

impl Embedding {
    /// `tokens`: `[tokens]`. `y`: [tokens, cols].
    pub fn record(&self, recorder: &mut Recorder, table: &Slice, tokens: &Buffer<u32>, y: &Buffer<f32>) {
        let blocks = table.format.blocks(table.cols);
        let params = EmbeddingParams {
            tokens: self.tokens as u32,
            first_row: table.first_row as u32,
            rows: table.rows as u32,
            cols: table.cols as u32,
            blocks: blocks as u32,
            scale: self.scale,
        };
        let buffers = [(&table.q_weight).into(), (&table.q_scale).into(), tokens.into(), y.into()];
        let groups = (self.tokens * blocks).div_ceil(WORKGROUP);
        recorder.expect_bytes((self.tokens * (blocks * table.format.block_bytes() + 4 * table.cols)) as u64);
        recorder.dispatch(&KERNEL, &variant(table.format), &params, &buffers, groups);
    }
}

fn variant(format: WeightFormat) -> Variant {
    Variant::new().weights(format).constant_is("WORKGROUP", WORKGROUP as u32)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    type Shape = (usize, usize, usize, f32);
    let shapes: Vec<(WeightFormat, Shape)> = match set {
        CaseSet::Test => {
            let shapes = [
                (100, 576, 1, 1.0),
                (33, 2048, 7, 45.25),
                (9, 77, 40, 1.0),
                (50, 96, 5, 8.5),
                (10, 128, 3, 11.3),
                (70, 32, 70, 1.0),
                (3, 2048, 2, 64.0),
            ];
            all_formats().into_iter().flat_map(|format| shapes.map(|shape| (format, shape))).collect()
        }
        CaseSet::Bench => vec![(four_bits(), (32_000, 3072, 512, 1.0))],
    };
    let case = |(format, (rows, cols, count, scale)): (WeightFormat, Shape)| Case {
        label: format!("{count} of {rows} x {cols} times {scale}"),
        variant: variant(format),
        flops: 0,
        bytes: (count * (format.blocks(cols) * format.block_bytes() + 4 * cols)) as u64,
        // MLC's value is (code - 7) * scale. Ours is the same product, rounded once.
        tolerance: 1e-14,
        buffers: Box::new(move || {
            let [q_weight, q_scale] = random_matrix(format, rows, cols, rows as u64);
            let mut random = Random::new(count as u64);
            let tokens = (0..count).map(|i| if i == 0 { rows - 1 } else { random.below(rows) } as u32).collect();
            vec![q_weight, q_scale, CaseBuffer::words(tokens), CaseBuffer::output(count * cols)]
        }),
        record: Box::new(move |recorder, b| {
            let table = cases::slice(format, rows, cols, &b[0], &b[1]);
            Embedding { tokens: count, scale }.record(recorder, &table, &b[2], &b[3].cast());
        }),
        reference: Box::new(move |b| {
            let table = cases::values(format, rows, cols, &b[0].words, &b[1].words);
            let mut y = vec![0.0; count * cols];
            embedding(&table, cols, scale, &b[2].words, &mut y);
            vec![y]
        }),
    };
    shapes.into_iter().map(case).collect()
}
