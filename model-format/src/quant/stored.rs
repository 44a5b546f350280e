//! [`StoredTensor`]: the tensors of a parameter in an MLC folder, either one tensor or codes and scales. The converter
//! writes them, the engine reads them.

use half::f16;

use super::{Layout, QuantFormat, QuantizedMatrix, group_quant::Scales};
use crate::{Dtype, Error, HostTensor, Param, Result, Role, Weight};

/// Name, shape and type of a tensor in an MLC folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// `X.weight` or `X.bias`; for a quantized matrix `X.q_weight` or `X.q_scale`.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Number type in memory.
    pub dtype: Dtype,
}

impl StoredTensor {
    /// Number type in the file. MLC stores f32 as bf16.
    pub fn disk_dtype(&self) -> Dtype {
        if self.dtype == Dtype::F32 { Dtype::BF16 } else { self.dtype }
    }

    /// Size in the file, in bytes.
    pub fn disk_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.disk_dtype().size()
    }
}

impl QuantFormat {
    /// The stored tensors of `param`, in the order of the index.
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
        if self.is_transposed(param) {
            shapes.iter_mut().for_each(|shape| shape.reverse());
        }
        let [codes, scales] = shapes;
        vec![
            StoredTensor { name: format!("{module}q_weight"), shape: codes, dtype: Dtype::U32 },
            StoredTensor { name: format!("{module}q_scale"), shape: scales, dtype: group.dtype },
        ]
    }

    /// True if the rows of `param` are stored contiguously and in order, so that a range of rows can be read alone.
    pub fn stores_rows(&self, param: &Param) -> bool {
        param.shape.len() == 2 && !(self.quantizes(param) && self.is_transposed(param))
    }

    /// True if the codes and scales of `param` are stored transposed.
    fn is_transposed(&self, param: &Param) -> bool {
        self.layout == Layout::Kn && param.role != Role::Embedding
    }

    /// Converts codes `[rows, words]` and scales `[rows, groups]` of a quantized parameter to their stored orientation.
    pub fn arranged(&self, param: &Param, q_weight: Vec<u32>, q_scale: Vec<u16>) -> (Vec<u32>, Vec<u16>) {
        if !self.is_transposed(param) {
            return (q_weight, q_scale);
        }
        (transpose(&q_weight, param.shape[0]), transpose(&q_scale, param.shape[0]))
    }

    /// Checks shape and dtype of a stored tensor of `param` against `expected`. An unquantized tensor may have any
    /// floating-point type. `file` is the tensor's file, for the error.
    ///
    /// # Errors
    ///
    /// [`Error::ParamShape`], [`Error::ParamDtype`].
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

    /// Builds a parameter from its stored tensors, in the order of [`QuantFormat::stored`]. Checks their shapes and
    /// dtypes. `file` is their file, for the error.
    ///
    /// # Errors
    ///
    /// As [`QuantFormat::check_stored`].
    ///
    /// # Panics
    ///
    /// If the number of tensors is wrong.
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
                if self.is_transposed(param) {
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

/// Transposes `[rows, cols]` to `[cols, rows]`, in tiles for cache locality on both sides.
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
