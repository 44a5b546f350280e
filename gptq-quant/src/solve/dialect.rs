//! [`Dialect`]: this crate's GPTQ or the authors' gptq.py.

/// The variant of GPTQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// This crate's.
    Own,
    /// The authors' gptq.py, whose recorded results tests compare with. See `gptq_py.rs` for the differences.
    GptqPy,
}
