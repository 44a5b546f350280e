//! How an MLC folder stores a parameter: one tensor, or codes and scales. The converter writes these, the engine reads
//! them.

use half::f16;

use super::{QuantFormat, QuantizedMatrix};
use crate::{Dtype, Error, HostTensor, Param, Result, Weight};

/// A tensor as an MLC folder names and shapes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// `X.weight`, or `X.q_weight` and `X.q_scale`.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Number type in memory.
    pub dtype: Dtype,
}

impl QuantFormat {
    /// What is stored for `param`, in the order of the records.
    pub fn stored(&self, param: &Param) -> Vec<StoredTensor> {
        let (Some(group), true) = (self.group(), self.quantizes(param)) else {
            return vec![StoredTensor {
                name: param.name.clone(),
                shape: param.shape.clone(),
                dtype: self.model_dtype,
            }];
        };
        let [rows, cols] = param.shape[..] else { panic!("stored: `{}` is not a matrix", param.name) };
        let module = param.name.strip_suffix("weight").expect("parameters end in .weight");
        let groups = group.groups(cols);
        vec![
            StoredTensor {
                name: format!("{module}q_weight"),
                shape: vec![rows, groups * group.words_per_group()],
                dtype: Dtype::U32,
            },
            StoredTensor { name: format!("{module}q_scale"), shape: vec![rows, groups], dtype: self.model_dtype },
        ]
    }

    /// The parameter out of its stored tensors, in the order of [`QuantFormat::stored`], whose shapes and dtypes are
    /// checked. `file` is for the error.
    pub fn weight_from_stored(&'static self, file: &str, param: &Param, tensors: &[HostTensor<'_>]) -> Result<Weight> {
        let stored = self.stored(param);
        assert_eq!(stored.len(), tensors.len(), "weight_from_stored: all tensors of `{}`", param.name);
        for (expected, found) in stored.iter().zip(tensors) {
            if expected.shape != found.shape {
                return Err(Error::ParamShape {
                    name: expected.name.clone(),
                    file: file.into(),
                    found: found.shape.clone(),
                    expected: expected.shape.clone(),
                });
            }
            let codes = expected.dtype == Dtype::U32;
            if codes != (found.dtype == Dtype::U32) || (self.quantizes(param) && expected.dtype != found.dtype) {
                return Err(Error::ParamDtype {
                    name: expected.name.clone(),
                    file: file.into(),
                    found: found.dtype.to_string(),
                    expected: expected.dtype.to_string(),
                });
            }
        }
        Ok(match tensors {
            [codes, scales] => {
                let [rows, cols] = param.shape[..] else { panic!("only matrices are stored in two tensors") };
                Weight::Quantized(QuantizedMatrix {
                    format: self,
                    rows,
                    cols,
                    q_weight: codes
                        .bytes
                        .chunks_exact(4)
                        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                        .collect(),
                    q_scale: f16_values(scales),
                })
            }
            [whole] if whole.dtype == Dtype::F16 => Weight::F16 { shape: param.shape.clone(), data: f16_values(whole) },
            [whole] => Weight::F32 { shape: param.shape.clone(), data: whole.to_f32() },
            _ => unreachable!("a parameter is stored in one or two tensors"),
        })
    }
}

impl QuantizedMatrix {
    /// The bytes of its stored tensors, in the order of [`QuantFormat::stored`].
    pub fn stored_bytes(&self) -> [Vec<u8>; 2] {
        [
            self.q_weight.iter().flat_map(|word| word.to_le_bytes()).collect(),
            self.q_scale.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
        ]
    }
}

fn f16_values(tensor: &HostTensor<'_>) -> Vec<f16> {
    tensor.bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
}
