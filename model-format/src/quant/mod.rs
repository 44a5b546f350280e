//! Quantization formats: records in [`QUANT_FORMATS`], one folder per family with both halves of the layout, packing in
//! Rust and unpacking in WGSL.
//!
//! Nothing outside this folder knows how a quantized weight is laid out.

pub mod group_quant;
pub mod no_quant;
mod stored;

pub use group_quant::bf16_on_disk;
pub use stored::StoredTensor;

use crate::{Dtype, Error, Param, Result, Role};
use group_quant::{GroupQuant, Scales};

/// Every format there is, under MLC's names: bits of a code, number type of the model, and a layout.
pub const QUANT_FORMATS: &[QuantFormat] = &[
    group("q4f16_1", 4, 32, Dtype::F16),
    group("q4f32_1", 4, 32, Dtype::F32),
    QuantFormat { layout: Layout::Kn, ..group("q4f16_0", 4, 32, Dtype::F16) },
    QuantFormat { keeps_ends: true, ..group("q4f16_2", 4, 32, Dtype::F16) },
    group("q3f16_1", 3, 40, Dtype::F16),
    QuantFormat { layout: Layout::Kn, ..group("q3f16_0", 3, 40, Dtype::F16) },
    group("q4bf16_1", 4, 32, Dtype::BF16),
    QuantFormat { layout: Layout::Kn, ..group("q4bf16_0", 4, 32, Dtype::BF16) },
    plain("q0f16", Dtype::F16),
    plain("q0f32", Dtype::F32),
    plain("q0bf16", Dtype::BF16),
];

/// A format of codes in groups, stored as MLC stores most.
const fn group(name: &'static str, bits: usize, group_size: usize, dtype: Dtype) -> QuantFormat {
    let kind = Kind::Group(GroupQuant { bits, group_size, dtype });
    QuantFormat { name, kind, layout: Layout::Nk, keeps_ends: false }
}

/// A format without codes.
const fn plain(name: &'static str, dtype: Dtype) -> QuantFormat {
    QuantFormat { name, kind: Kind::Plain(dtype), layout: Layout::Nk, keeps_ends: false }
}

/// A named way to store a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantFormat {
    /// MLC's name, `q4f16_1`.
    pub name: &'static str,
    /// Family, with its numbers.
    pub kind: Kind,
    /// How the codes and scales of linear layers lie in a folder. In memory they are always [`Layout::Nk`].
    pub layout: Layout,
    /// Whether the embedding table and the head stay plain numbers.
    pub keeps_ends: bool,
}

/// Which way round a folder stores the codes and scales of a linear layer. Embedding tables are never turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A row per output.
    Nk,
    /// A row per word, or per group, of inputs: the transposed of the other.
    Kn,
}

/// The families of formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stored as numbers of the model's type, which is this.
    Plain(Dtype),
    /// Codes in groups that share a scale.
    Group(GroupQuant),
}

impl QuantFormat {
    /// The format of that name.
    pub fn by_name(name: &str) -> Result<&'static QuantFormat> {
        QUANT_FORMATS.iter().find(|f| f.name == name).ok_or_else(|| Error::UnknownFormat {
            name: name.into(),
            known: QUANT_FORMATS.iter().map(|f| f.name).collect(),
        })
    }

    /// The numbers of a group format, `None` for a plain one.
    pub fn group(&self) -> Option<GroupQuant> {
        match self.kind {
            Kind::Group(group) => Some(group),
            Kind::Plain(_) => None,
        }
    }

    /// Number type of what is not quantized, of the scales, and of the arithmetic of quantizing.
    pub fn model_dtype(&self) -> Dtype {
        match self.kind {
            Kind::Group(group) => group.dtype,
            Kind::Plain(dtype) => dtype,
        }
    }

    /// Whether `param` is stored in codes.
    pub fn quantizes(&self, param: &Param) -> bool {
        self.quantizes_role(param.role)
    }

    /// Whether a matrix in this place is stored in codes.
    pub fn quantizes_role(&self, role: Role) -> bool {
        self.group().is_some() && role.is_matrix() && (role.is_layer_matrix() || !self.keeps_ends)
    }

    /// Round-to-nearest, exactly as MLC does it. `weights` is row-major `[rows, cols]`.
    ///
    /// Panics when this is a plain format or `weights` has another length.
    pub fn quantize(&'static self, rows: usize, cols: usize, weights: &[f32]) -> QuantizedMatrix {
        let group = self.group().unwrap_or_else(|| panic!("quantize: {} has no codes", self.name));
        let (q_weight, q_scale) = group.quantize(rows, cols, weights);
        QuantizedMatrix { format: self, rows, cols, q_weight, q_scale }
    }

    /// Packs codes `[rows, cols]` with scales `[rows, groups]` that were chosen elsewhere, by GPTQ say.
    ///
    /// Panics when this is a plain format or a length is wrong.
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
    /// The format; always one with codes.
    pub format: &'static QuantFormat,
    /// Outputs, N.
    pub rows: usize,
    /// Inputs, K.
    pub cols: usize,
    /// `[rows, groups * words per group]` packed codes.
    pub q_weight: Vec<u32>,
    /// `[rows, groups]` scales.
    pub q_scale: Scales,
}

impl QuantizedMatrix {
    /// The numbers of the format.
    pub fn group(&self) -> GroupQuant {
        self.format.group().expect("a QuantizedMatrix has a group format")
    }

    /// The values, row-major `[rows, cols]`, in f32 (not rounded to f16).
    pub fn dequantize(&self) -> Vec<f32> {
        self.group().dequantize(self.rows, self.cols, &self.q_weight, &self.q_scale)
    }

    /// The distance between two neighboring values at each weight, row-major `[rows, cols]`: its group's scale without sign.
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

    /// Bytes that the matrix takes in memory and on disk.
    pub fn size(&self) -> usize {
        self.q_weight.len() * 4 + self.q_scale.len() * 2
    }

    /// Matrices with the same inputs, one above the other. Rows are outputs, so this is exact.
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
