//! [`RopeTables`]: cosines and sines of the rotary position embedding, on the device.

use model_format::{DecoderConfig, rope, rope_scaling::RopeScaling};

use crate::{
    Result,
    ops::{AttentionShape, Backend, Loading},
};

/// The rotary tables of a decoder: one for all texts, or one for short and one for long texts.
pub struct RopeTables<O: Backend> {
    table: RopeTable<O>,
    /// The length of the longest short text, and the table of longer ones.
    long: Option<(usize, RopeTable<O>)>,
}

impl<O: Loading> RopeTables<O> {
    /// Uploads the tables for texts of up to `positions` tokens.
    pub fn new(ops: &mut O, config: &DecoderConfig, positions: usize) -> Result<RopeTables<O>> {
        let short = match config.rope_scaling {
            Some(RopeScaling::LongRope { original_max_position_embeddings: short, .. }) if short < positions => short,
            _ => return Ok(RopeTables { table: RopeTable::new(ops, config, positions)?, long: None }),
        };
        let long = RopeTable::new(ops, config, positions)?;
        Ok(RopeTables { table: RopeTable::new(ops, config, short)?, long: Some((short, long)) })
    }
}

impl<O: Backend> RopeTables<O> {
    /// True if short and long texts have different tables.
    pub fn depends_on_length(&self) -> bool {
        self.long.is_some()
    }

    /// The length of the longest short text. `usize::MAX` if all texts are short.
    pub fn long_from(&self) -> usize {
        self.long.as_ref().map_or(usize::MAX, |(short, _)| *short)
    }

    /// True if a text of `len` tokens uses the table of long texts.
    pub fn is_long(&self, len: usize) -> bool {
        self.long.as_ref().is_some_and(|(short, _)| len > *short)
    }

    /// The table of long texts if `long`, else of short ones.
    pub fn table(&self, long: bool) -> &RopeTable<O> {
        match &self.long {
            Some((_, table)) if long => table,
            _ => &self.table,
        }
    }
}

/// The rotary table `[positions, rotary_dim]` of each layer.
pub struct RopeTable<O: Backend> {
    table: O::Tensor,
    /// The table of layers with a sliding window, if it differs.
    windowed: Option<O::Tensor>,
}

impl<O: Loading> RopeTable<O> {
    fn new(ops: &mut O, config: &DecoderConfig, positions: usize) -> Result<RopeTable<O>> {
        let mut upload =
            |config: &DecoderConfig| ops.upload(positions, config.rotary_dim, &rope::cos_sin_table(config, positions));
        let windowed = config
            .window_rope_theta
            .map(|rope_theta| upload(&DecoderConfig { rope_theta, rope_scaling: None, ..config.clone() }));
        Ok(RopeTable { windowed: windowed.transpose()?, table: upload(config)? })
    }
}

impl<O: Backend> RopeTable<O> {
    /// The table of layers with this attention.
    pub(super) fn of(&self, attention: AttentionShape) -> &O::Tensor {
        self.windowed.as_ref().filter(|_| attention.window.is_some()).unwrap_or(&self.table)
    }
}
