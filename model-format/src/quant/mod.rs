//! Quantization formats: records in [`QUANT_FORMATS`], one folder per family with both halves of the layout, packing in
//! Rust and unpacking in WGSL.
//!
//! Nothing outside this folder knows how a quantized weight is laid out.

pub mod group_quant;
pub mod no_quant;
mod stored;

use half::f16;

pub use stored::StoredTensor;

use crate::{Dtype, Error, Param, Result, Role};
use group_quant::GroupQuant;

/// Every format there is.
pub const QUANT_FORMATS: &[QuantFormat] = &[
    QuantFormat { name: "q4f16_1", model_dtype: Dtype::F16, kind: Kind::Group(GroupQuant { bits: 4, group_size: 32 }) },
    QuantFormat { name: "q0f16", model_dtype: Dtype::F16, kind: Kind::Plain },
];

/// A named way to store a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantFormat {
    /// MLC's name, `q4f16_1`.
    pub name: &'static str,
    /// Number type of what is not quantized, of the scales, and of the arithmetic of quantizing.
    pub model_dtype: Dtype,
    /// Family, with its numbers.
    pub kind: Kind,
}

/// The families of formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stored as numbers of the model's dtype.
    Plain,
    /// Codes in groups that share a scale.
    Group(GroupQuant),
}

impl QuantFormat {
    /// The format of that name.
    pub fn by_name(name: &str) -> Result<&'static QuantFormat> {
        QUANT_FORMATS.iter().find(|f| f.name == name).ok_or_else(|| Error::UnknownFormat { name: name.into() })
    }

    /// The numbers of a group format, `None` for a plain one.
    pub fn group(&self) -> Option<GroupQuant> {
        match self.kind {
            Kind::Group(group) => Some(group),
            Kind::Plain => None,
        }
    }

    /// Whether `param` is stored in codes.
    pub fn quantizes(&self, param: &Param) -> bool {
        self.group().is_some() && param.role.is_matrix()
    }

    /// Whether a matrix in this place is stored in codes.
    pub fn quantizes_role(&self, role: Role) -> bool {
        self.group().is_some() && role.is_matrix()
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
    pub fn pack(&'static self, rows: usize, cols: usize, codes: &[u8], scales: Vec<f16>) -> QuantizedMatrix {
        let group = self.group().unwrap_or_else(|| panic!("pack: {} has no codes", self.name));
        assert_eq!(scales.len(), rows * group.groups(cols), "pack: one scale per row and group");
        QuantizedMatrix { format: self, rows, cols, q_weight: group.pack(rows, cols, codes), q_scale: scales }
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
    pub q_scale: Vec<f16>,
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
            whole.q_scale.extend(part.q_scale);
        }
        whole
    }
}
