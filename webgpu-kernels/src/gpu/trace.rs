//! [`Traced`]: a dispatch as data, to plan with or to run by another implementation of WebGPU. [`TracedUpload`]: values that were
//! uploaded for these dispatches.

use crate::{Kernel, Variant};

/// A dispatch that was recorded but not run.
pub struct Traced {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The variant.
    pub variant: Variant,
    /// The uniform.
    pub params: Vec<u8>,
    /// The storage buffers, from `@binding(1)`.
    pub bindings: Vec<TracedBinding>,
    /// Workgroups in both dimensions.
    pub groups: (u32, u32),
    /// Estimated bytes that it reads and writes.
    pub bytes: u64,
    /// Multiplications and additions, from [`super::Recorder::expect_work`].
    pub work: u64,
}

impl Traced {
    /// A field of the uniform, by its name.
    pub fn param(&self, name: &str) -> Option<u32> {
        let (_, offset) = self.kernel.params.fields.iter().find(|(field, _)| *field == name)?;
        Some(u32::from_le_bytes(self.params[*offset..offset + 4].try_into().expect("four bytes")))
    }
}

/// A temporary whose values the recorder uploaded before the dispatches that use it.
pub struct TracedUpload {
    /// Identifies the memory: see [`super::Buffer::id`].
    pub id: u64,
    /// The whole memory: the values, then zeros.
    pub words: Vec<u32>,
}

/// A buffer of a dispatch.
pub struct TracedBinding {
    /// Identifies the memory: see [`super::Buffer::id`].
    pub id: u64,
    /// First byte.
    pub offset: u64,
    /// Size of the whole memory, in bytes.
    pub size: u64,
}
