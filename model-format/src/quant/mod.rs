//! Quantization formats, listed in [`QUANT_FORMATS`].
//!
//! Each family has a folder with both sides of its layout: packing in Rust and unpacking in WGSL. No code outside this
//! folder depends on the layout of quantized weights.

pub mod group_quant;
pub mod no_quant;
mod stored;

pub use group_quant::bf16_on_disk;
pub use stored::StoredTensor;

use crate::{Dtype, Error, Param, Result, Role};
use group_quant::{GroupQuant, Scales};

/// All formats under MLC's names. A name `q4f16_1` gives the bits per code, the model's number type, and a layout
/// variant.
pub const QUANT_FORMATS: &[QuantFormat] = &[
    group("q4f16_1", 4, 32, Dtype::F16),
    group("q4f32_1", 4, 32, Dtype::F32),
    QuantFormat { layout: Layout::Kn, ..group("q4f16_0", 4, 32, Dtype::F16) },
    QuantFormat { skips_embedding_and_head: true, ..group("q4f16_2", 4, 32, Dtype::F16) },
    group("q3f16_1", 3, 40, Dtype::F16),
    QuantFormat { layout: Layout::Kn, ..group("q3f16_0", 3, 40, Dtype::F16) },
    group("q4bf16_1", 4, 32, Dtype::BF16),
    QuantFormat { layout: Layout::Kn, ..group("q4bf16_0", 4, 32, Dtype::BF16) },
    plain("q0f16", Dtype::F16),
    plain("q0f32", Dtype::F32),
    plain("q0bf16", Dtype::BF16),
];

/// A group format with MLC's default layout.
const fn group(name: &'static str, bits: usize, group_size: usize, dtype: Dtype) -> QuantFormat {
    let kind = Kind::Group(GroupQuant { bits, group_size, dtype });
    QuantFormat { name, kind, layout: Layout::Nk, skips_embedding_and_head: false }
}

/// An unquantized format.
const fn plain(name: &'static str, dtype: Dtype) -> QuantFormat {
    QuantFormat { name, kind: Kind::Plain(dtype), layout: Layout::Nk, skips_embedding_and_head: false }
}

/// A format of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantFormat {
    /// MLC's name, for example `q4f16_1`.
    pub name: &'static str,
    /// Family and its parameters.
    pub kind: Kind,
    /// Orientation of the codes and scales of linear layers in files. In memory it is always [`Layout::Nk`].
    pub layout: Layout,
    /// True if the embedding table and the output projection are not quantized.
    pub skips_embedding_and_head: bool,
}

/// Orientation of a linear layer's codes and scales in files. Embedding tables are always [`Layout::Nk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One row per output.
    Nk,
    /// One row per word (codes) or group (scales) of inputs: the transpose of `Nk`.
    Kn,
}

/// The families of formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Unquantized, in this number type.
    Plain(Dtype),
    /// Codes in groups that share a scale.
    Group(GroupQuant),
}

impl QuantFormat {
    /// The format with this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownFormat`].
    pub fn by_name(name: &str) -> Result<&'static QuantFormat> {
        QUANT_FORMATS.iter().find(|f| f.name == name).ok_or_else(|| Error::UnknownFormat {
            name: name.into(),
            known: QUANT_FORMATS.iter().map(|f| f.name).collect(),
        })
    }

    /// Parameters of a group format. `None` for an unquantized format.
    pub fn group(&self) -> Option<GroupQuant> {
        match self.kind {
            Kind::Group(group) => Some(group),
            Kind::Plain(_) => None,
        }
    }

    /// Number type of unquantized parameters, of scales, and of the arithmetic while quantizing.
    pub fn model_dtype(&self) -> Dtype {
        match self.kind {
            Kind::Group(group) => group.dtype,
            Kind::Plain(dtype) => dtype,
        }
    }

    /// True if the format quantizes `param`.
    pub fn quantizes(&self, param: &Param) -> bool {
        self.quantizes_role(param.role)
    }

    /// True if the format quantizes parameters of this role.
    pub fn quantizes_role(&self, role: Role) -> bool {
        self.group().is_some() && role.is_matrix() && (role.is_layer_matrix() || !self.skips_embedding_and_head)
    }

    /// Quantizes by round-to-nearest, bit for bit like MLC. `weights` is row-major `[rows, cols]`.
    ///
    /// # Panics
    ///
    /// If this is not a group format, or the length of `weights` is wrong.
    pub fn quantize(&'static self, rows: usize, cols: usize, weights: &[f32]) -> QuantizedMatrix {
        let group = self.group().unwrap_or_else(|| panic!("quantize: {} has no codes", self.name));
        let (q_weight, q_scale) = group.quantize(rows, cols, weights);
        QuantizedMatrix { format: self, rows, cols, q_weight, q_scale }
    }

    /// Packs codes `[rows, cols]` and scales `[rows, groups]` from another quantizer, for example GPTQ.
    ///
    /// # Panics
    ///
    /// If this is not a group format, or a length is wrong.
    pub fn pack(&'static self, rows: usize, cols: usize, codes: &[u8], q_scale: Scales) -> QuantizedMatrix {
        let group = self.group().unwrap_or_else(|| panic!("pack: {} has no codes", self.name));
        assert_eq!(q_scale.len(), rows * group.groups(cols), "pack: one scale per row and group");
        assert_eq!(q_scale.dtype, group.scale_dtype(), "pack: scales of {}", self.name);
        QuantizedMatrix { format: self, rows, cols, q_weight: group.pack(rows, cols, codes), q_scale }
    }
}

/// A matrix `[rows, cols]` in a group format: `rows` outputs, `cols` inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// The format, always a group format.
    pub format: &'static QuantFormat,
    /// Number of outputs, N.
    pub rows: usize,
    /// Number of inputs, K.
    pub cols: usize,
    /// Packed codes `[rows, groups * words per group]`.
    pub q_weight: Vec<u32>,
    /// Scales `[rows, groups]`.
    pub q_scale: Scales,
}

impl QuantizedMatrix {
    /// Parameters of the format.
    pub fn group(&self) -> GroupQuant {
        self.format.group().expect("a QuantizedMatrix has a group format")
    }

    /// The values, row-major `[rows, cols]`, in f32 without rounding to f16.
    pub fn dequantize(&self) -> Vec<f32> {
        self.group().dequantize(self.rows, self.cols, &self.q_weight, &self.q_scale)
    }

    /// The grid step at each weight, row-major `[rows, cols]`: the absolute value of its group's scale.
    pub fn steps(&self) -> Vec<f32> {
        let group = self.group();
        let ones = group.pack(self.rows, self.cols, &vec![group.max_int() + 1; self.rows * self.cols]);
        let values = group.dequantize(self.rows, self.cols, &ones, &self.q_scale);
        values.into_iter().map(f32::abs).collect()
    }

    /// The codes, row-major `[rows, cols]`.
    pub fn codes(&self) -> Vec<u8> {
        self.group().unpack(self.rows, self.cols, &self.q_weight)
    }

    /// Size in bytes, in memory and on disk.
    pub fn size(&self) -> usize {
        self.q_weight.len() * 4 + self.q_scale.len() * 2
    }

    /// Joins matrices with the same inputs by rows. Rows are outputs, so this is exact.
    ///
    /// # Panics
    ///
    /// If `parts` is empty, or formats or numbers of inputs differ.
    pub fn concat_rows(parts: Vec<QuantizedMatrix>) -> QuantizedMatrix {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().expect("concat_rows: at least one matrix");
        for part in parts {
            assert_eq!((part.format, part.cols), (whole.format, whole.cols), "concat_rows: same format and inputs");
            whole.rows += part.rows;
            whole.q_weight.extend(part.q_weight);
            whole.q_scale.bits.extend(part.q_scale.bits);
        }
        whole
    }
}
