//! [`CheckpointWriter`]: the quantized model as AutoGPTQ, GPTQModel and vLLM read it.
//!
//! `main.rs` opens one before it starts, so that an output folder that cannot be written ends the run at once and not
//! after an hour. Matrices go to disk as they come.

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::f16;
use model_format::{
    Checkpoint, DecoderConfig, Dtype, HostTensor, Param, Role,
    checkpoint::{SafetensorsWriter, check_float, missing_param, read_float},
    gptq::GptqConfig,
};
use serde_json::Value;

use crate::{Error, Quantized, Result, Settings, quantized_params};

/// The files of an older model that a new one replaces.
const OLD_FILES: [&str; 3] = ["config.json", "model.safetensors", "model.safetensors.index.json"];

/// The fields of config.json that name the number type of unquantized weights.
const DTYPE_FIELDS: [&str; 2] = ["torch_dtype", "dtype"];

/// A GPTQ checkpoint being written. config.json comes last, so that a folder without one is not whole; what was written
/// before that is removed when this is dropped unfinished.
pub struct CheckpointWriter<'a> {
    source: &'a dyn Checkpoint,
    config: GptqConfig,
    folder: PathBuf,
    /// `None` once it is finished.
    weights: Option<SafetensorsWriter>,
    /// Whether the folder was made for this.
    made_folder: bool,
}

impl<'a> CheckpointWriter<'a> {
    /// Begins `folder`, with every tensor of `source` that is not to be quantized: in f16, but for integers.
    ///
    /// A quantized model that is there already stays as it is until this one is finished. Any other is refused: it may
    /// be the source.
    ///
    /// Of the embedding table and the head, where they are to be quantized, it holds the values in f16: GPTQ's formats have
    /// no codes for them.
    pub fn create(source: &'a dyn Checkpoint, folder: &Path, settings: &Settings) -> Result<CheckpointWriter<'a>> {
        let decoder = unquantized_config(source)?;
        settings.check(source, &decoder)?;
        let config = settings.gptq_config(&decoder)?;
        let mut announced = Vec::new();
        let mut quantized = Vec::new();
        for (param, options) in quantized_params(&decoder, settings)? {
            for part in &param.sources {
                let info = source.info(&part.name).ok_or_else(|| missing_param(source, &part.name))?;
                check_float(source, info, &[part.rows, param.shape[1]])?;
                quantized.push(part.name.clone());
                if options.values_in_f16 {
                    announced.push((part.name.clone(), Dtype::F16, info.shape.clone()));
                    continue;
                }
                let config = config.of_module(part.module())?;
                announced.extend(part_tensors(&config, part.module(), part.rows, param.shape[1])?);
            }
        }
        let unused = decoder.architecture().unused;
        let kept: Vec<_> = source
            .tensors()
            .iter()
            .filter(|info| !quantized.contains(&info.name) && !unused.iter().any(|end| info.name.ends_with(end)))
            .collect();
        for info in &kept {
            let dtype = if is_float(info.dtype) { Dtype::F16 } else { info.dtype };
            announced.push((info.name.clone(), dtype, info.shape.clone()));
        }

        let made_folder = prepare_folder(folder)?;
        let weights = SafetensorsWriter::create(&folder.join("model.safetensors"), &announced)?;
        let mut writer =
            CheckpointWriter { source, config, folder: folder.into(), weights: Some(weights), made_folder };
        for info in kept {
            let tensor = if is_float(info.dtype) {
                let values = read_float(source, &info.name, &info.shape)?;
                to_f16(&info.name, info.shape.clone(), &values)?
            } else {
                source.tensor(&info.name)?
            };
            writer.weights().write(&info.name, &tensor)?;
        }
        Ok(writer)
    }

    /// Writes one quantized matrix: a part for each of the parameter's sources.
    pub fn add(&mut self, param: &Param, quantized: &Quantized) -> Result<()> {
        let in_codes = param.role.is_layer_matrix() || (param.role == Role::LmHead && self.config.lm_head);
        if !in_codes {
            let values = quantized.dequantize().into_raw_vec_and_offset().0;
            let [part] = &param.sources[..] else { panic!("`{}` is one tensor of a checkpoint", param.name) };
            let tensor = to_f16(&part.name, param.shape.clone(), &values)?;
            return Ok(self.weights().write(&part.name, &tensor)?);
        }
        let mut start = 0;
        for part in &param.sources {
            let matrix = quantized.rows_to_checkpoint(start, part.rows);
            start += part.rows;
            let config = self.config.of_module(part.module())?;
            for (name, tensor) in matrix.to_tensors(&config, part.module()) {
                self.weights().write(&name, &tensor)?;
            }
        }
        Ok(())
    }

    /// Puts everything in its place: the tokenizer's and other files, the weights, and config.json at the end.
    pub fn finish(mut self) -> Result<()> {
        for name in OLD_FILES {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(model_format::Error::Io { action: "remove", path, source }.into()),
            }
        }
        let description = self.config.to_json();
        for (name, content) in self.source.companion_files()? {
            if name != "config.json" && name != "quantize_config.json" {
                self.write_file(&name, &content)?;
            }
        }
        self.write_file("quantize_config.json", &to_json(&Value::Object(description.clone())))?;
        self.weights.take().expect("open until finished").finish()?;

        let mut config: Value = serde_json::from_str(self.source.config_json()).expect("parsed when this was created");
        for field in DTYPE_FIELDS {
            if let Some(dtype) = config.get_mut(field) {
                *dtype = "float16".into();
            }
        }
        config["quantization_config"] = Value::Object(description);
        self.write_file("config.json", &to_json(&config))
    }

    fn weights(&mut self) -> &mut SafetensorsWriter {
        self.weights.as_mut().expect("open until finished")
    }

    /// The file appears whole or not at all.
    fn write_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let written = fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            // What is left of it is not in anybody's way.
            let _ = fs::remove_file(&temporary);
        }
        Ok(written.map_err(|source| model_format::Error::Io { action: "write", path, source })?)
    }
}

impl Drop for CheckpointWriter<'_> {
    fn drop(&mut self) {
        if self.weights.take().is_some() && self.made_folder {
            // Fails where others put files there meanwhile, and then it shall stay.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The shape of a model that is not quantized yet.
pub fn unquantized_config(checkpoint: &dyn Checkpoint) -> Result<DecoderConfig> {
    let config = DecoderConfig::from_hf(checkpoint.config_json())?;
    match GptqConfig::from_config(checkpoint.config_json())? {
        None => Ok(config),
        Some(_) => Err(Error::AlreadyQuantized { location: checkpoint.location() }),
    }
}

/// Makes the folder, or sees to it that it holds nothing that may not be replaced. Whether it was made.
fn prepare_folder(folder: &Path) -> Result<bool> {
    let path = folder.join("config.json");
    match fs::read_to_string(&path) {
        Ok(json) if GptqConfig::from_config(&json).is_ok_and(|config| config.is_some()) => {}
        Ok(_) => return Err(Error::OutputExists { folder: folder.into() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(model_format::Error::Io { action: "read", path, source }.into()),
    }
    let made = !folder.exists();
    fs::create_dir_all(folder).map_err(|source| model_format::Error::Io {
        action: "create",
        path: folder.into(),
        source,
    })?;
    Ok(made)
}

/// Names, number types and shapes of a quantized matrix `[rows, cols]`.
fn part_tensors(
    config: &GptqConfig,
    module: &str,
    rows: usize,
    cols: usize,
) -> Result<[(String, Dtype, Vec<usize>); 4]> {
    let multiple = config.multiple();
    if !rows.is_multiple_of(multiple) || !cols.is_multiple_of(multiple) {
        return Err(Error::Unpackable { module: module.into(), rows, cols, multiple });
    }
    let groups = config.groups(cols);
    Ok([
        (format!("{module}.qweight"), Dtype::I32, vec![cols * config.bits / 32, rows]),
        (format!("{module}.qzeros"), Dtype::I32, vec![groups, rows * config.bits / 32]),
        (format!("{module}.scales"), Dtype::F16, vec![groups, rows]),
        (format!("{module}.g_idx"), Dtype::I32, vec![cols]),
    ])
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn to_f16(name: &str, shape: Vec<usize>, values: &[f32]) -> Result<HostTensor<'static>> {
    let mut bytes = Vec::with_capacity(values.len() * 2);
    for &value in values {
        let rounded = f16::from_f32(value);
        if rounded.is_infinite() {
            return Err(Error::F16Overflow { name: name.into(), value });
        }
        bytes.extend(rounded.to_le_bytes());
    }
    Ok(HostTensor { dtype: Dtype::F16, shape, bytes: bytes.into() })
}

fn to_json(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("a JSON value serializes");
    text.push(b'\n');
    text
}
