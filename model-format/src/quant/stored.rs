//! How an MLC folder stores a parameter: one tensor, or codes and scales. The converter writes these, the engine reads
//! them.

use half::f16;

use super::{Layout, QuantFormat, QuantizedMatrix, group_quant::Scales};
use crate::{Dtype, Error, HostTensor, Param, Result, Role, Weight};

/// A tensor as an MLC folder names and shapes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// `X.weight` or `X.bias`, or `X.q_weight` and `X.q_scale`.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Number type in memory.
    pub dtype: Dtype,
}

impl StoredTensor {
    /// Number type in the file: MLC writes f32 as bf16.
    pub fn disk_dtype(&self) -> Dtype {
        if self.dtype == Dtype::F32 { Dtype::BF16 } else { self.dtype }
    }

    /// Bytes in the file.
    pub fn disk_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.disk_dtype().size()
    }
}

impl QuantFormat {
    /// What is stored for `param`, in the order of the records.
    pub fn stored(&self, param: &Param) -> Vec<StoredTensor> {
        let (Some(group), true) = (self.group(), self.quantizes(param)) else {
            return vec![StoredTensor {
                name: param.name.clone(),
                shape: param.shape.clone(),
                dtype: self.model_dtype(),
            }];
        };
        let [rows, cols] = param.shape[..] else { panic!("stored: `{}` is not a matrix", param.name) };
        let module = param.name.strip_suffix("weight").expect("matrices end in .weight");
        let mut shapes = [vec![rows, group.row_words(cols)], vec![rows, group.groups(cols)]];
        if self.turns(param) {
            shapes.iter_mut().for_each(|shape| shape.reverse());
        }
        let [codes, scales] = shapes;
        vec![
            StoredTensor { name: format!("{module}q_weight"), shape: codes, dtype: Dtype::U32 },
            StoredTensor { name: format!("{module}q_scale"), shape: scales, dtype: group.dtype },
        ]
    }

    /// Whether a row of `param` lies in one piece, behind the row before it, so that some rows can be read alone.
    pub fn stores_rows(&self, param: &Param) -> bool {
        param.shape.len() == 2 && !(self.quantizes(param) && self.turns(param))
    }

    /// Whether codes and scales of `param` are stored transposed.
    fn turns(&self, param: &Param) -> bool {
        self.layout == Layout::Kn && param.role != Role::Embedding
    }

    /// Codes `[rows, words]` and scales `[rows, groups]` of a quantized parameter as a folder stores them.
    pub fn arranged(&self, param: &Param, q_weight: Vec<u32>, q_scale: Vec<u16>) -> (Vec<u32>, Vec<u16>) {
        if !self.turns(param) {
            return (q_weight, q_scale);
        }
        (transpose(&q_weight, param.shape[0]), transpose(&q_scale, param.shape[0]))
    }

    /// Refuses a stored tensor of `param`, the one that should be `expected`, that has another shape or dtype. `file` is
    /// for the error.
    pub fn check_stored(
        &self,
        file: &str,
        param: &Param,
        expected: &StoredTensor,
        shape: &[usize],
        dtype: Dtype,
    ) -> Result<()> {
        if expected.shape != shape {
            return Err(Error::ParamShape {
                name: expected.name.clone(),
                file: file.into(),
                found: shape.to_vec(),
                expected: expected.shape.clone(),
            });
        }
        let float = matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
        let fits = if self.quantizes(param) { expected.disk_dtype() == dtype } else { float };
        match fits {
            true => Ok(()),
            false => Err(Error::ParamDtype {
                name: expected.name.clone(),
                file: file.into(),
                found: dtype.to_string(),
                expected: expected.disk_dtype().to_string(),
            }),
        }
    }

    /// The parameter out of its stored tensors, in the order of [`QuantFormat::stored`], whose shapes and dtypes are
    /// checked. `file` is for the error.
    pub fn weight_from_stored(&'static self, file: &str, param: &Param, tensors: &[HostTensor<'_>]) -> Result<Weight> {
        let stored = self.stored(param);
        assert_eq!(stored.len(), tensors.len(), "weight_from_stored: all tensors of `{}`", param.name);
        for (expected, found) in stored.iter().zip(tensors) {
            self.check_stored(file, param, expected, &found.shape, found.dtype)?;
        }
        Ok(match tensors {
            [codes, scales] => {
                let [rows, cols] = param.shape[..] else { panic!("only matrices are stored in two tensors") };
                let mut q_weight: Vec<u32> =
                    codes.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                let mut bits: Vec<u16> =
                    scales.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
                if self.turns(param) {
                    q_weight = transpose(&q_weight, q_weight.len() / rows);
                    bits = transpose(&bits, bits.len() / rows);
                }
                let q_scale = Scales { dtype: scales.dtype, bits };
                Weight::Quantized(QuantizedMatrix { format: self, rows, cols, q_weight, q_scale })
            }
            [whole] if whole.dtype == Dtype::F16 => {
                let data = whole.bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
                Weight::F16 { shape: param.shape.clone(), data }
            }
            [whole] => Weight::F32 { shape: param.shape.clone(), data: whole.to_f32() },
            _ => unreachable!("a parameter is stored in one or two tensors"),
        })
    }
}

/// `[rows, ..]` to `[.., rows]`, in tiles, so that neither side strides through memory.
fn transpose<T: Copy + Default>(values: &[T], rows: usize) -> Vec<T> {
    const TILE: usize = 16;
    let cols = values.len() / rows;
    let mut out = vec![T::default(); values.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_col in (0..cols).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for col in first_col..cols.min(first_col + TILE) {
                    out[col * rows + row] = values[row * cols + col];
                }
            }
        }
    }
    out
}
