//! One parameter, from the checkpoint's numbers to the bytes of an MLC folder.

use half::f16;
use model_format::{
    Checkpoint, Dtype, Error as FormatError, HostTensor, QuantFormat, QuantizedMatrix,
    checkpoint::file_of,
    gptq::{GptqConfig, GptqMatrix},
};
use rayon::prelude::*;

use crate::{
    Error, Result,
    plan::{PlannedParam, SourceKind},
};

/// Weights that are handled at a time by one thread: enough to be worth the change of thread, small beside a tensor.
const CHUNK: usize = 1 << 18;

/// Reads a parameter and returns the bytes of its stored tensors, in the order of `QuantFormat::stored`.
pub(crate) fn encode(
    checkpoint: &dyn Checkpoint,
    gptq: Option<&GptqConfig>,
    format: &'static QuantFormat,
    planned: &PlannedParam,
) -> Result<Vec<Vec<u8>>> {
    let param = &planned.param;
    let parts = param.sources.iter().zip(&planned.sources).map(|(source, kind)| {
        let mut shape = param.shape.clone();
        shape[0] = source.rows;
        Part {
            checkpoint,
            format,
            name: &source.name,
            module: source.module(),
            shape,
            gptq: gptq.filter(|_| *kind == SourceKind::Gptq),
        }
    });
    if format.quantizes(param) {
        let matrices = parts.map(|part| part.quantized()).collect::<Result<Vec<_>>>()?;
        Ok(QuantizedMatrix::concat_rows(matrices).stored_bytes().into())
    } else {
        let mut bytes = Vec::with_capacity(param.shape.iter().product::<usize>() * format.model_dtype.size());
        for part in parts {
            bytes.extend(part.plain()?);
        }
        Ok(vec![bytes])
    }
}

/// One source of a parameter.
struct Part<'a> {
    checkpoint: &'a dyn Checkpoint,
    format: &'static QuantFormat,
    name: &'a str,
    module: &'a str,
    shape: Vec<usize>,
    /// How its codes are to be read, where it has codes.
    gptq: Option<&'a GptqConfig>,
}

impl Part<'_> {
    /// The source in the format's codes: those it has, or the nearest.
    fn quantized(&self) -> Result<QuantizedMatrix> {
        if let Some(matrix) = self.gptq_matrix()? {
            return Ok(matrix.to_format(self.format, self.module)?);
        }
        let cols = self.shape[1];
        let chunks = self.by_rows(|values| self.format.quantize(values.len() / cols, cols, values))?;
        Ok(QuantizedMatrix::concat_rows(chunks))
    }

    /// The source in numbers of the model's type.
    fn plain(&self) -> Result<Vec<u8>> {
        let to_bytes = |values: &[f32]| match self.format.model_dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>(),
            other => panic!("no format stores weights in {other}"),
        };
        match self.gptq_matrix()? {
            Some(matrix) => {
                let values = matrix.dequantize();
                self.check_range(&values, 0)?;
                Ok(to_bytes(&values))
            }
            None => Ok(self.by_rows(to_bytes)?.concat()),
        }
    }

    fn gptq_matrix(&self) -> Result<Option<GptqMatrix>> {
        let Some(config) = self.gptq else { return Ok(None) };
        let matrix = GptqMatrix::read(self.checkpoint, config, self.module)?;
        if let Some(matrix) = &matrix {
            matrix.check_shape(self.checkpoint, self.module, &self.shape)?;
        }
        Ok(matrix)
    }

    /// Applies `work` to runs of whole rows, widened and checked, on all threads.
    fn by_rows<T: Send>(&self, work: impl Fn(&[f32]) -> T + Sync) -> Result<Vec<T>> {
        let tensor = self.checkpoint.tensor(self.name)?;
        assert_eq!(tensor.shape, self.shape, "the plan has checked the shape of `{}`", self.name);
        let row: usize = self.shape[1..].iter().product();
        let values = CHUNK.div_ceil(row) * row;
        let chunks: Vec<Result<T>> = tensor
            .bytes
            .par_chunks(values * tensor.dtype.size())
            .enumerate()
            .map(|(i, bytes)| {
                let shape = vec![bytes.len() / tensor.dtype.size()];
                let chunk = HostTensor { dtype: tensor.dtype, shape, bytes: bytes.into() }.to_f32();
                self.check_range(&chunk, i * values)?;
                Ok(work(&chunk))
            })
            .collect();
        // One after another, so that the first bad value is the one that is named.
        chunks.into_iter().collect()
    }

    /// Refuses NaN, infinities, and numbers that become infinite in the model's type. `offset` is the index of the first.
    fn check_range(&self, values: &[f32], offset: usize) -> Result<()> {
        let limit = match self.format.model_dtype {
            // Halfway from the largest f16 to what would be the next.
            Dtype::F16 => 65520.0,
            _ => f32::INFINITY,
        };
        let fits = |v: &f32| v.abs() < limit; // which NaN is not
        let Some(at) = values.iter().position(|v| !fits(v)) else { return Ok(()) };
        let (name, index, value) = (self.name.to_owned(), offset + at, values[at]);
        Err(if value.is_finite() {
            let dtype = self.format.model_dtype.to_string();
            Error::Overflow { name, location: self.checkpoint.location(), index, value, dtype }
        } else {
            FormatError::NonFinite { name, file: file_of(self.checkpoint, self.name), index, value }.into()
        })
    }
}
