//! [`GptqMatrix`]: a quantized matrix. Reads and writes the four tensors of its module.

use std::borrow::Cow;

use half::f16;

use super::{
    GptqConfig,
    words::{pack_rows, transpose, unpack_rows, words},
};
use crate::{Checkpoint, Dtype, Error, HostTensor, Result, checkpoint::missing_param};

/// A quantized matrix, unpacked.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqMatrix {
    /// Number of outputs, N.
    pub rows: usize,
    /// Number of inputs, K.
    pub cols: usize,
    /// Codes `[rows, cols]`.
    pub codes: Vec<u8>,
    /// Scales `[rows, groups]`. Files store f16, a few a wider type.
    pub scales: Vec<f32>,
    /// Zeros `[rows, groups]`, without the offset of version 1 (8 for symmetric 4 bits).
    pub zeros: Vec<u8>,
    /// The group of each input, `[cols]`.
    pub g_idx: Vec<u32>,
}

impl GptqMatrix {
    /// Reads `MODULE.qweight`, `.qzeros`, `.scales` and `.g_idx` (default: `k / group_size`). `Ok(None)` if the module
    /// is not quantized.
    ///
    /// Version 1 stores a zero of 0 as all ones; it is read as 0. Some writers let it overflow into the neighboring
    /// zeros, which cannot be repaired.
    ///
    /// # Errors
    ///
    /// [`Error::MissingParam`], [`Error::ParamShape`], [`Error::ParamDtype`], [`Error::NonFinite`] for a scale,
    /// [`Error::Malformed`] for an invalid group index or, if symmetric, a zero outside the middle.
    pub fn read(checkpoint: &dyn Checkpoint, config: &GptqConfig, module: &str) -> Result<Option<GptqMatrix>> {
        let qweight_name = format!("{module}.qweight");
        if checkpoint.info(&qweight_name).is_none() {
            return Ok(None);
        }
        let config = &config.of_module(module)?;
        let reader = Reader { checkpoint, module };
        let (shape, qweight) = reader.words("qweight")?;
        let [words_k, rows] = shape[..] else { return Err(reader.wrong_shape("qweight", &shape, &[0, 0])) };
        let cols = words_k * 32 / config.bits;
        if rows == 0 || cols == 0 {
            return Err(reader.wrong_shape("qweight", &shape, &[1, 1]));
        }
        let groups = config.groups(cols);
        let (shape, qzeros) = reader.words("qzeros")?;
        let expected = [groups, words(config.bits, rows)];
        if shape != expected {
            return Err(reader.wrong_shape("qzeros", &shape, &expected));
        }
        let scales = reader.scales(&[groups, rows])?;
        let g_idx = match checkpoint.info(&format!("{module}.g_idx")) {
            Some(_) => reader.g_idx(cols, groups)?,
            None => config.natural_g_idx(cols),
        };

        // [K / 8, N] words -> [N, K / 8] words -> [N, K] codes.
        let codes = unpack_rows(config.bits, words_k, &transpose(rows, &qweight));
        let mask = ((1u32 << config.bits) - 1) as u8;
        let padded = expected[1] * 32 / config.bits;
        let stored: Vec<u8> = unpack_rows(config.bits, expected[1], &qzeros)
            .chunks_exact(padded)
            .flat_map(|group| &group[..rows])
            .map(|&zero| if config.v2 { zero } else { zero.wrapping_add(1) & mask })
            .collect();
        if let (true, Some(zero)) = (config.sym, stored.iter().find(|&&zero| zero != 1 << (config.bits - 1))) {
            return Err(Error::Malformed {
                file: checkpoint.location(),
                reason: format!(
                    "`{module}.qzeros` decodes to zero {zero}, but symmetric quantization has {}; is `checkpoint_format` \
                     right (`gptq` stores zeros minus one, `gptq_v2` unchanged)?",
                    1 << (config.bits - 1)
                ),
            });
        }
        Ok(Some(GptqMatrix {
            rows,
            cols,
            codes,
            scales: transpose(rows, &scales),
            zeros: transpose(rows, &stored),
            g_idx,
        }))
    }

    /// True if `module` is quantized. In this case, checks the shapes of its tensors for a matrix `[rows, cols]`
    /// without reading them.
    ///
    /// # Errors
    ///
    /// [`Error::MissingParam`], [`Error::ParamShape`].
    pub fn is_quantized(
        checkpoint: &dyn Checkpoint,
        config: &GptqConfig,
        module: &str,
        [rows, cols]: [usize; 2],
    ) -> Result<bool> {
        let info = |part: &str| checkpoint.info(&format!("{module}.{part}"));
        if info("qweight").is_none() {
            return Ok(false);
        }
        let config = &config.of_module(module)?;
        let reader = Reader { checkpoint, module };
        let groups = config.groups(cols);
        for (part, shape) in [
            ("qweight", vec![words(config.bits, cols), rows]),
            ("qzeros", vec![groups, words(config.bits, rows)]),
            ("scales", vec![groups, rows]),
        ] {
            let info = info(part).ok_or_else(|| missing_param(checkpoint, &format!("{module}.{part}")))?;
            if info.shape != shape {
                return Err(reader.wrong_shape(part, &info.shape, &shape));
            }
        }
        match info("g_idx") {
            Some(info) if info.shape != [cols] => Err(reader.wrong_shape("g_idx", &info.shape, &[cols])),
            _ => Ok(true),
        }
    }

    /// The four tensors, named `MODULE.qweight` and so on, for a safetensors file. `config` is the configuration
    /// [of the module](GptqConfig::of_module).
    ///
    /// # Panics
    ///
    /// If N or K is not a multiple of [`GptqConfig::multiple`], and for a zero of 0 in version 1, because readers
    /// disagree on its meaning.
    pub fn to_tensors(&self, config: &GptqConfig, module: &str) -> Vec<(String, HostTensor<'static>)> {
        let groups = self.groups();
        let name = |part: &str| format!("{module}.{part}");
        let tensor = |shape: [usize; 2], words: Vec<u32>| HostTensor {
            dtype: Dtype::I32,
            shape: shape.to_vec(),
            bytes: Cow::Owned(words.iter().flat_map(|w| w.to_le_bytes()).collect()),
        };

        let qweight = transpose(words(config.bits, self.cols), &pack_rows(config.bits, self.cols, &self.codes));
        let stored: Vec<u8> = self
            .zeros
            .iter()
            .map(|&zero| {
                assert!(config.v2 || zero > 0, "{module}: zero 0 cannot be written in a version 1 checkpoint");
                if config.v2 { zero } else { zero - 1 }
            })
            .collect();
        let qzeros = pack_rows(config.bits, self.rows, &transpose(groups, &stored));
        let scales = transpose(groups, &self.scales);
        vec![
            (name("qweight"), tensor([words(config.bits, self.cols), self.rows], qweight)),
            (name("qzeros"), tensor([groups, words(config.bits, self.rows)], qzeros)),
            (
                name("scales"),
                HostTensor {
                    dtype: Dtype::F16,
                    shape: vec![groups, self.rows],
                    bytes: Cow::Owned(scales.iter().flat_map(|s| f16::from_f32(*s).to_le_bytes()).collect()),
                },
            ),
            (
                name("g_idx"),
                HostTensor {
                    dtype: Dtype::I32,
                    shape: vec![self.cols],
                    bytes: Cow::Owned(self.g_idx.iter().flat_map(|g| g.to_le_bytes()).collect()),
                },
            ),
        ]
    }

    /// Number of groups per row.
    pub fn groups(&self) -> usize {
        self.scales.len() / self.rows
    }

    /// The values `[rows, cols]` in f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let groups = self.groups();
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for (row, codes) in self.codes.chunks_exact(self.cols).enumerate() {
            let scales = &self.scales[row * groups..][..groups];
            let zeros = &self.zeros[row * groups..][..groups];
            let value =
                |(&code, &g): (&u8, &u32)| (f32::from(code) - f32::from(zeros[g as usize])) * scales[g as usize];
            values.extend(codes.iter().zip(&self.g_idx).map(value));
        }
        values
    }

    /// The value of `code` in `row` and `group`.
    pub(super) fn value(&self, row: usize, code: u8, group: u32) -> f32 {
        let at = row * self.groups() + group as usize;
        (f32::from(code) - f32::from(self.zeros[at])) * self.scales[at]
    }

    /// Checks that the matrix has this shape `[n, k]`.
    ///
    /// # Errors
    ///
    /// [`Error::ParamShape`].
    pub fn check_shape(&self, checkpoint: &dyn Checkpoint, module: &str, shape: &[usize]) -> Result<()> {
        if [self.rows, self.cols] == *shape {
            return Ok(());
        }
        Err(Error::ParamShape {
            name: format!("{module}.qweight"),
            file: checkpoint.location(),
            found: vec![self.rows, self.cols],
            expected: shape.to_vec(),
        })
    }
}

/// Reads the tensors of one module.
struct Reader<'a> {
    checkpoint: &'a dyn Checkpoint,
    module: &'a str,
}

impl<'a> Reader<'a> {
    fn tensor(&self, part: &str) -> Result<HostTensor<'a>> {
        let name = format!("{}.{part}", self.module);
        if self.checkpoint.info(&name).is_none() {
            return Err(missing_param(self.checkpoint, &name));
        }
        self.checkpoint.tensor(&name)
    }

    fn wrong_shape(&self, part: &str, found: &[usize], expected: &[usize]) -> Error {
        Error::ParamShape {
            name: format!("{}.{part}", self.module),
            file: self.checkpoint.location(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        }
    }

    fn wrong_dtype(&self, part: &str, found: Dtype, expected: &str) -> Error {
        Error::ParamDtype {
            name: format!("{}.{part}", self.module),
            file: self.checkpoint.location(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn words(&self, part: &str) -> Result<(Vec<usize>, Vec<u32>)> {
        let tensor = self.tensor(part)?;
        if !matches!(tensor.dtype, Dtype::I32 | Dtype::U32) {
            return Err(self.wrong_dtype(part, tensor.dtype, "i32"));
        }
        let words = tensor.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok((tensor.shape, words))
    }

    fn scales(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor("scales")?;
        if tensor.shape != shape {
            return Err(self.wrong_shape("scales", &tensor.shape, shape));
        }
        if !matches!(tensor.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            return Err(self.wrong_dtype("scales", tensor.dtype, "f16"));
        }
        let scales = tensor.to_f32();
        match scales.iter().position(|s| !s.is_finite()) {
            Some(index) => Err(Error::NonFinite {
                name: format!("{}.scales", self.module),
                file: self.checkpoint.location(),
                index,
                value: scales[index],
            }),
            None => Ok(scales),
        }
    }

    fn g_idx(&self, cols: usize, groups: usize) -> Result<Vec<u32>> {
        let tensor = self.tensor("g_idx")?;
        if tensor.shape != [cols] {
            return Err(self.wrong_shape("g_idx", &tensor.shape, &[cols]));
        }
        let wide: Vec<i64> = match tensor.dtype {
            Dtype::I32 => {
                tensor.bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            Dtype::I64 => tensor
                .bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("chunks of 8 bytes")))
                .collect(),
            other => return Err(self.wrong_dtype("g_idx", other, "i32")),
        };
        wide.iter()
            .map(|&g| {
                u32::try_from(g).ok().filter(|&g| (g as usize) < groups).ok_or_else(|| Error::Malformed {
                    file: self.checkpoint.location(),
                    reason: format!("`{}.g_idx` refers to group {g}, but the matrix has {groups} groups", self.module),
                })
            })
            .collect()
    }
}
