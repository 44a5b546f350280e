//! [`encode`]: one parameter, from the numbers of the checkpoint to the tensors of an MLC folder.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use model_format::{
    Checkpoint, Dtype, Error as FormatError, QuantFormat,
    checkpoint::file_of,
    gptq::{GptqConfig, GptqMatrix, Refit},
    quant::{bf16_on_disk, group_quant::GroupQuant},
    tensor::widen,
};
use rayon::prelude::*;

use crate::{
    Error, Result,
    plan::{Plan, PlannedParam, SourceKind},
};

/// Weights per parallel task: large enough to amortize scheduling, small enough for a core's cache.
const CHUNK: usize = 1 << 15;

/// A stored tensor's content.
pub(crate) enum Content {
    Words(Vec<u32>),
    /// f16 or bf16, as bits.
    Halves(Vec<u16>),
}

impl Content {
    /// Little-endian bytes.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        match self {
            Content::Words(words) => {
                words.iter_mut().for_each(|word| *word = word.to_le());
                bytemuck::cast_slice(words)
            }
            Content::Halves(halves) => {
                halves.iter_mut().for_each(|half| *half = half.to_le());
                bytemuck::cast_slice(halves)
            }
        }
    }
}

/// An encoded parameter.
pub(crate) struct Encoded {
    /// In the order of `QuantFormat::stored`.
    pub(crate) tensors: Vec<Content>,
    /// Its GPTQ matrices with values that the format cannot represent.
    pub(crate) refits: Vec<Refit>,
    /// Groups of floating-point weights that were rounded.
    pub(crate) rounded: usize,
}

/// Reads a parameter and encodes it in the format. With `refit`, values of GPTQ matrices may change if the format requires it.
pub(crate) fn encode(checkpoint: &dyn Checkpoint, plan: &Plan, planned: &PlannedParam, refit: bool) -> Result<Encoded> {
    let (format, param) = (plan.format, &planned.param);
    let quantizes = format.group().filter(|_| format.quantizes(param));
    let cols = param.shape.get(1).copied().unwrap_or(1);
    let rows = param.shape[0];
    let (mut words, mut halves) = match quantizes {
        Some(group) => (vec![0u32; rows * group.row_words(cols)], vec![0u16; rows * group.groups(cols)]),
        None => (Vec::new(), vec![0u16; rows * cols]),
    };
    let (mut refits, mut rounded) = (Vec::new(), 0);
    let mut row = 0;
    for (source, kind) in param.sources.iter().zip(&planned.sources) {
        let mut shape = param.shape.clone();
        shape[0] = source.rows;
        let part = Part {
            checkpoint,
            format,
            name: &source.name,
            module: source.module(),
            shape,
            cols,
            gptq: plan.gptq.as_ref().filter(|_| *kind == SourceKind::Gptq),
            keeps: plan.gptq.is_some(),
            adds_one: param.adds_one,
        };
        let end = row + source.rows;
        match quantizes {
            Some(group) => {
                let words = &mut words[row * group.row_words(cols)..end * group.row_words(cols)];
                let scales = &mut halves[row * group.groups(cols)..end * group.groups(cols)];
                let (refit, groups) = part.quantize(group, refit, words, scales)?;
                refits.extend(refit);
                rounded += groups;
            }
            None => part.plain(&mut halves[row * cols..end * cols])?,
        }
        row = end;
    }
    let tensors = match quantizes {
        Some(_) => {
            let (words, scales) = format.arranged(param, words, halves);
            vec![Content::Words(words), Content::Halves(scales)]
        }
        None => vec![Content::Halves(halves)],
    };
    Ok(Encoded { tensors, refits, rounded })
}

/// One source of a parameter.
struct Part<'a> {
    checkpoint: &'a dyn Checkpoint,
    format: &'static QuantFormat,
    name: &'a str,
    module: &'a str,
    shape: Vec<usize>,
    /// Weights of a row.
    cols: usize,
    /// The configuration of its GPTQ codes; `None` for numbers.
    gptq: Option<&'a GptqConfig>,
    /// True if numbers on the format's grid stay unchanged, because a quantizer put them there.
    keeps: bool,
    adds_one: bool,
}

impl Part<'_> {
    /// Writes the source in the format's codes: its own or the nearest. Returns the refit and the number of rounded groups.
    fn quantize(
        &self,
        group: GroupQuant,
        refit: bool,
        words: &mut [u32],
        scales: &mut [u16],
    ) -> Result<(Option<Refit>, usize)> {
        if let Some(matrix) = self.gptq_matrix()? {
            let (matrix, refit) = match refit {
                true => matrix.refit(self.format, self.module),
                false => (matrix.to_format(self.format, self.module)?, None),
            };
            words.copy_from_slice(&matrix.q_weight);
            scales.copy_from_slice(&matrix.q_scale.bits);
            return Ok((refit, 0));
        }
        let rows = CHUNK.div_ceil(self.cols);
        let tensor = self.checkpoint.tensor(self.name)?;
        assert_eq!(tensor.shape, self.shape, "the plan has checked the shape of `{}`", self.name);
        let chunks = tensor.bytes.par_chunks(rows * self.cols * tensor.dtype.size());
        let out = words
            .par_chunks_mut(rows * group.row_words(self.cols))
            .zip(scales.par_chunks_mut(rows * group.groups(self.cols)));
        let rounded = AtomicUsize::new(0);
        let results = chunks.zip(out).enumerate().map_init(Vec::new, |values, (i, (bytes, (words, scales)))| {
            widen(tensor.dtype, bytes, values);
            self.check_range(values, i * rows * self.cols)?;
            if self.keeps {
                rounded.fetch_add(group.requantize_into(self.cols, values, words, scales), Relaxed);
            } else {
                group.quantize_into(self.cols, values, words, scales);
                rounded.fetch_add(scales.len(), Relaxed);
            }
            Ok(())
        });
        first_error(results)?;
        Ok((None, rounded.into_inner()))
    }

    /// Writes the source in the model's number type.
    fn plain(&self, out: &mut [u16]) -> Result<()> {
        if let Some(matrix) = self.gptq_matrix()? {
            let values = matrix.dequantize();
            self.check_range(&values, 0)?;
            narrow(self.format.model_dtype(), &values, out);
            return Ok(());
        }
        let tensor = self.checkpoint.tensor(self.name)?;
        assert_eq!(tensor.shape, self.shape, "the plan has checked the shape of `{}`", self.name);
        let chunks = tensor.bytes.par_chunks(CHUNK * tensor.dtype.size()).zip(out.par_chunks_mut(CHUNK));
        let results = chunks.enumerate().map_init(Vec::new, |values, (i, (bytes, out))| {
            widen(tensor.dtype, bytes, values);
            if self.adds_one {
                // MLC adds in the number type of the checkpoint.
                values.iter_mut().for_each(|v| *v = rounded(tensor.dtype, *v + 1.0));
            }
            self.check_range(values, i * CHUNK)?;
            narrow(self.format.model_dtype(), values, out);
            Ok(())
        });
        first_error(results)
    }

    fn gptq_matrix(&self) -> Result<Option<GptqMatrix>> {
        let Some(config) = self.gptq else { return Ok(None) };
        let matrix = GptqMatrix::read(self.checkpoint, config, self.module)?;
        if let Some(matrix) = &matrix {
            matrix.check_shape(self.checkpoint, self.module, &self.shape)?;
        }
        Ok(matrix)
    }

    /// Refuses NaN, infinities, and numbers that overflow the model's type. `offset` is the index of the first value.
    fn check_range(&self, values: &[f32], offset: usize) -> Result<()> {
        let limit = match self.format.model_dtype() {
            // Halfway between the largest number and the next power of two: rounds to infinity.
            Dtype::F16 => 65520.0,
            Dtype::BF16 => f32::from_bits(0x7f7f_8000),
            _ => f32::INFINITY,
        };
        // False for NaN.
        let fits = |v: &f32| v.abs() < limit;
        // Without an early exit the loop compiles to vector code.
        if values.iter().fold(true, |all, v| all & fits(v)) {
            return Ok(());
        }
        let at = values.iter().position(|v| !fits(v)).expect("one of them does not fit");
        let (name, index, value) = (self.name.to_owned(), offset + at, values[at]);
        Err(if value.is_finite() {
            let dtype = self.format.model_dtype().to_string();
            Error::Overflow { name, location: self.checkpoint.location(), index, value, dtype }
        } else {
            FormatError::NonFinite { name, file: file_of(self.checkpoint, self.name), index, value }.into()
        })
    }
}

/// The first error in the order of chunks, which names the first bad value.
fn first_error(results: impl IndexedParallelIterator<Item = Result<()>>) -> Result<()> {
    let mut all = Vec::new();
    results.collect_into_vec(&mut all);
    all.into_iter().collect()
}

/// The nearest number of a type.
fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Rounds values to the 16-bit type on disk.
fn narrow(dtype: Dtype, values: &[f32], out: &mut [u16]) {
    match dtype {
        Dtype::F16 => bytemuck::cast_slice_mut::<u16, f16>(out).convert_from_f32_slice(values),
        Dtype::BF16 => bytemuck::cast_slice_mut::<u16, bf16>(out).convert_from_f32_slice(values),
        _ => out.iter_mut().zip(values).for_each(|(out, &value)| *out = bf16_on_disk(value).to_bits()),
    }
}
