//! [`Plan`]: every parameter with its sources, checked against the headers of a checkpoint.

use std::collections::{HashMap, HashSet};

use model_format::{
    Checkpoint, DecoderConfig, Param, QuantFormat,
    checkpoint::{check_float, missing_param, nearest},
    gptq::{GptqConfig, GptqMatrix},
    params,
    params::Source,
};

use crate::{Error, Result};

/// Tensors of a GPTQ module. The position of the first determines the position of its parameter among the records.
const GPTQ_PARTS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// The parameters that a conversion writes, in the order of the records.
#[derive(Debug)]
pub struct Plan {
    /// The decoder's shape.
    pub config: DecoderConfig,
    /// The format.
    pub format: &'static QuantFormat,
    /// The GPTQ configuration of the checkpoint; `None` for a float checkpoint.
    pub gptq: Option<GptqConfig>,
    /// The parameters in MLC's order: by the position of their first source in the checkpoint.
    pub params: Vec<PlannedParam>,
    /// Tensors that no parameter uses.
    pub unused: Vec<String>,
    /// Number of weights in the checkpoint, the divisor of bits per weight. A packed word counts as several.
    pub elements: u64,
    /// Bytes of the tensors to read.
    pub source_bytes: u64,
}

/// One parameter of a [`Plan`].
#[derive(Debug)]
pub struct PlannedParam {
    /// The parameter.
    pub param: Param,
    /// The kind of each source, in the same order.
    pub sources: Vec<SourceKind>,
    /// Bytes of its sources.
    pub source_bytes: u64,
}

/// How a checkpoint stores a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Floating-point numbers.
    Float,
    /// GPTQ codes.
    Gptq,
}

impl PlannedParam {
    /// Names of the checkpoint's tensors that it consists of.
    pub fn source_names(&self) -> Vec<String> {
        let names = |(source, kind): (&Source, &SourceKind)| kind.names(source);
        self.param.sources.iter().zip(&self.sources).flat_map(names).collect()
    }
}

impl SourceKind {
    fn names(self, source: &Source) -> Vec<String> {
        match self {
            SourceKind::Float => vec![source.name.clone()],
            SourceKind::Gptq => GPTQ_PARTS.iter().map(|part| format!("{}.{part}", source.module())).collect(),
        }
    }
}

impl Plan {
    /// Reads the configuration and the headers of `checkpoint`. Checks names, types and shapes of all parameters, and reports all
    /// errors at once.
    pub fn new(checkpoint: &dyn Checkpoint, format: &'static QuantFormat) -> Result<Plan> {
        let config = DecoderConfig::from_hf(checkpoint.config_json())?;
        let gptq = GptqConfig::from_config(checkpoint.config_json())?;
        let positions: HashMap<&str, usize> =
            checkpoint.tensors().iter().enumerate().map(|(i, info)| (info.name.as_str(), i)).collect();

        let mut used = HashSet::new();
        let mut problems = Vec::new();
        let mut elements = 0;
        let mut list = Vec::new();
        for param in params(&config) {
            let mut sources = Vec::with_capacity(param.sources.len());
            let mut first = usize::MAX;
            let mut source_bytes = 0;
            for source in &param.sources {
                let mut shape = param.shape.clone();
                shape[0] = source.rows;
                let kind = match kind(checkpoint, gptq.as_ref(), &param, source, &shape) {
                    Ok(kind) => kind,
                    Err(problem) => {
                        problems.push(problem);
                        continue;
                    }
                };
                for name in kind.names(source) {
                    if let Some(&position) = positions.get(name.as_str()) {
                        let info = &checkpoint.tensors()[position];
                        source_bytes += (info.elements() * info.dtype.size()) as u64;
                        first = first.min(position);
                        used.insert(name);
                    }
                }
                elements += shape.iter().product::<usize>() as u64;
                sources.push(kind);
            }
            list.push((first, PlannedParam { param, sources, source_bytes }));
        }
        // Suggest only names that no other parameter uses.
        let free = || checkpoint.tensors().iter().map(|info| info.name.as_str()).filter(|name| !used.contains(*name));
        for problem in &mut problems {
            if let model_format::Error::MissingParam { name, nearest: found, .. } = problem {
                *found = nearest(name, free());
            }
        }
        match problems.len() {
            0 => {}
            1 => return Err(problems.remove(0).into()),
            _ => return Err(Error::Problems { location: checkpoint.location(), problems }),
        }
        list.sort_by_key(|(first, _)| *first);
        let params: Vec<_> = list.into_iter().map(|(_, planned)| planned).collect();

        let mut unused = Vec::new();
        for info in checkpoint.tensors() {
            let known = config.architecture().unused.iter().any(|end| info.name.ends_with(end));
            if used.contains(&info.name) || known {
                continue;
            }
            check_bias(checkpoint, &params, &info.name)?;
            elements += info.elements() as u64;
            unused.push(info.name.clone());
        }
        let source_bytes = params.iter().map(|p| p.source_bytes).sum();
        Ok(Plan { config, format, gptq, params, unused, elements, source_bytes })
    }
}

/// The kind of `source`. Checks its header.
fn kind(
    checkpoint: &dyn Checkpoint,
    gptq: Option<&GptqConfig>,
    param: &Param,
    source: &Source,
    shape: &[usize],
) -> model_format::Result<SourceKind> {
    if let (Some(gptq), true, [rows, cols]) = (gptq, param.role.is_matrix(), shape)
        && GptqMatrix::is_quantized(checkpoint, gptq, source.module(), [*rows, *cols])?
    {
        return Ok(SourceKind::Gptq);
    }
    match checkpoint.info(&source.name) {
        Some(info) => check_float(checkpoint, info, shape)?,
        // The checkpoint reports an unsupported type; otherwise the tensor is missing.
        None => {
            checkpoint.tensor(&source.name)?;
            return Err(missing_param(checkpoint, &source.name));
        }
    }
    Ok(SourceKind::Float)
}

/// A bias where the architecture has none must be zero. AutoGPTQ used to write a zero bias for every module.
fn check_bias(checkpoint: &dyn Checkpoint, params: &[PlannedParam], name: &str) -> Result<()> {
    let Some(module) = name.strip_suffix(".bias") else { return Ok(()) };
    let ours = params.iter().flat_map(|p| &p.param.sources).any(|source| source.module() == module);
    // A float of any width is zero if all its bits except the sign are zero.
    let zero = |bytes: &[u8], width: usize| {
        bytes.chunks_exact(width).all(|v| v[..width - 1].iter().all(|&b| b == 0) && v[width - 1] & 0x7f == 0)
    };
    if ours {
        let tensor = checkpoint.tensor(name)?;
        if !zero(&tensor.bytes, tensor.dtype.size()) {
            return Err(Error::UnexpectedBias { name: name.into(), location: checkpoint.location() });
        }
    }
    Ok(())
}
