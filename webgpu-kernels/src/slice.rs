//! [`Slice`]: some rows of a weight matrix on the device. Kernels read these; [`crate::Matrix`] consists of them.

use std::borrow::Cow;

use bytemuck::cast_slice;
use half::f16;

use crate::{WeightFormat, gpu::Buffer};

/// Consecutive rows of a [`crate::Matrix`], in one pair of buffers.
#[derive(Clone)]
pub struct Slice {
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Inputs of the whole matrix, K.
    pub cols: usize,
    /// Storage format of the weights.
    pub format: WeightFormat,
    /// Blocks in the layout of the format.
    pub q_weight: Buffer<u32>,
    /// Scales, two f16 to a word. Plain formats have none; then this is any buffer.
    pub q_scale: Buffer<u32>,
}

/// Two f16 to a word.
pub(crate) fn pairs(values: &[f16]) -> Cow<'_, [u32]> {
    match bytemuck::try_cast_slice(values) {
        Ok(words) => Cow::Borrowed(words),
        // An odd number of values, or memory that is aligned only for f16.
        Err(_) => {
            let mut padded = values.to_vec();
            padded.resize(values.len().next_multiple_of(2), f16::ZERO);
            Cow::Owned(bytemuck::pod_collect_to_vec(cast_slice::<f16, u8>(&padded)))
        }
    }
}
