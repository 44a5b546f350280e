//! [`CheckpointWriter`]: the quantized model as AutoGPTQ, GPTQModel and vLLM read it.
//!
//! The program opens one before it starts, so that an output folder that cannot be written ends the run at once and not
//! after an hour. Matrices go to disk as they come, each in a file of its own that outlives the process, and at the end
//! into the one that readers look for.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;
use model_format::{
    Checkpoint, DecoderConfig, Dtype, HostTensor, Param, Role, TensorInfo,
    checkpoint::{SafetensorsWriter, check_float, missing_param, read_float, read_param},
    gptq::GptqConfig,
    staging::{Finished, Staging, difference},
};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::{
    Error, HeadInputs, MatrixReport, Quantized, Result, Run, Settings, Store,
    output::{LAYOUT, QUANTIZER, WEIGHTS, is_replaced, stage},
    quantized_params,
    store::Writing,
};

/// How the names of files end that are only there until the checkpoint is whole.
const PART: &str = ".part";

/// The fields of config.json that name the number type of unquantized weights.
const DTYPE_FIELDS: [&str; 2] = ["torch_dtype", "dtype"];

/// The name, number type and shape of a tensor that is to come.
type Announced = (String, Dtype, Vec<usize>);

/// A GPTQ checkpoint being written. What is finished when this is dropped stays for a process that
/// [goes on](CheckpointWriter::resume); nothing of it bears the name that a reader would look for.
pub struct CheckpointWriter<'a> {
    source: &'a dyn Checkpoint,
    config: GptqConfig,
    /// config.json as it will be.
    config_json: Value,
    folder: PathBuf,
    staging: Option<Staging>,
    /// Tensors that stay as they are.
    kept: Vec<Announced>,
    /// Those of each quantized parameter, by its name.
    parts: HashMap<String, Vec<Announced>>,
    /// What is there, in the order in which it came: by parameter's name, and text.
    finished: Vec<Finished>,
    /// What another thread has brought to the disk, and no journal tells of yet.
    prepared: Arc<Mutex<Vec<Finished>>>,
    /// Files that go with the checkpoint.
    attached: Vec<(&'static str, Vec<u8>)>,
}

impl<'a> CheckpointWriter<'a> {
    /// Begins `folder`, and finds out whether all of `source` can be written: what is not to be quantized in f16, but for
    /// integers.
    ///
    /// The folder must be absent, empty, or hold nothing but what an earlier run wrote, which stays as it is until this one is
    /// finished.
    ///
    /// Of the embedding table and the head, where they are to be quantized, it holds the values in f16: GPTQ's formats have
    /// no codes for them.
    pub fn create(source: &'a dyn Checkpoint, folder: &Path, settings: &Settings) -> Result<CheckpointWriter<'a>> {
        CheckpointWriter::create_over(source, folder, settings, false)
    }

    /// The same; with `overwrite` the folder may also hold a GPTQ checkpoint of another program, whose files this one replaces.
    pub fn create_over(
        source: &'a dyn Checkpoint,
        folder: &Path,
        settings: &Settings,
        overwrite: bool,
    ) -> Result<CheckpointWriter<'a>> {
        let decoder = unquantized_config(source)?;
        settings.check(source, &decoder)?;
        let config = settings.gptq_config(&decoder)?;
        let mut parts = HashMap::new();
        let mut quantized = Vec::new();
        for (param, options) in quantized_params(&decoder, settings)? {
            let mut announced = Vec::new();
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
            parts.insert(param.name, announced);
        }
        let unused = decoder.architecture().unused;
        let mut kept = Vec::new();
        for info in source.tensors() {
            if quantized.contains(&info.name) || unused.iter().any(|end| info.name.ends_with(end)) {
                continue;
            }
            let dtype = if is_float(info.dtype) { Dtype::F16 } else { info.dtype };
            kept.push((info.name.clone(), dtype, info.shape.clone()));
        }
        let staging = stage(folder, overwrite)?;
        let mut config_json: Value = serde_json::from_str(source.config_json()).expect("parsed as the decoder's");
        for field in DTYPE_FIELDS {
            if let Some(dtype) = config_json.get_mut(field) {
                *dtype = "float16".into();
            }
        }
        config_json["quantization_config"] = Value::Object(config.to_json());
        config_json["quantization_config"]["meta"] = json!({ "quantizer": [QUANTIZER] });
        let staging = Some(staging);
        let writer = CheckpointWriter {
            source,
            config,
            config_json,
            folder: folder.into(),
            staging,
            kept,
            parts,
            finished: Vec::new(),
            prepared: Arc::default(),
            attached: Vec::new(),
        };
        writer.check_space()?;
        for (name, ..) in &writer.kept {
            writer.kept_tensor(name)?;
        }
        Ok(writer)
    }

    /// Goes on with what `run` has left in the folder, if it was ended; refuses where another has left something, unless
    /// `anew`. Without this call a run that is interrupted leaves nothing.
    pub fn resume(&mut self, run: &Run, anew: bool) -> Result<()> {
        let staging = self.staging.as_mut().expect("open until finished");
        if let Some(left) = staging.left()
            && !anew
            && let Some((what, was, is)) = run.difference(&left)
        {
            return Err(Error::OtherRun { folder: self.folder.clone(), what, was, is });
        }
        if anew {
            staging.resume("")?;
        }
        self.finished = staging.resume(&run.line())?;
        self.config_json["quantization_config"]["meta"] =
            json!({ "quantizer": [QUANTIZER], "run": run.id(), "steps": run.steps() });
        Ok(())
    }

    /// Whether the folder holds what `run` would write. What it left when it was ended after that is cleared away.
    pub fn is_made(&mut self, run: &Run) -> Result<bool> {
        let Ok(json) = fs::read(self.folder.join("config.json")) else { return Ok(false) };
        let config: Value = serde_json::from_slice(&json).unwrap_or_default();
        let is_made = config["quantization_config"]["meta"]["run"] == run.id();
        let staging = self.staging.as_mut().expect("open until finished");
        // A journal may be gone before what it tells of is, or be the empty one of clearing away.
        let is_ours = |left: String| left.is_empty() || run.difference(&left).is_none();
        if is_made && staging.left().is_none_or(is_ours) {
            staging.resume("")?;
        }
        Ok(is_made)
    }

    /// The first step that computes something else now than when the checkpoint in the folder was made: its name, its number
    /// then and now.
    pub fn changed_step(&self, run: &Run) -> Option<(String, String, String)> {
        let json = fs::read(self.folder.join("config.json")).ok()?;
        let config: Value = serde_json::from_slice(&json).ok()?;
        let Value::Object(steps) = &config["quantization_config"]["meta"]["steps"] else { return None };
        difference("steps", &Value::Object(steps.clone()), run.steps())
    }

    /// What was reported of the matrices that are done.
    pub fn reports(&self) -> impl Iterator<Item = MatrixReport> {
        let of_matrices = self.finished.iter().filter(|file| self.parts.contains_key(param_of(&file.name)));
        of_matrices.filter_map(|file| serde_json::from_value(file.note.clone()).ok())
    }

    /// Adds a file that goes with the checkpoint.
    pub fn attach(&mut self, name: &'static str, content: Vec<u8>) {
        self.attached.push((name, content));
    }

    /// Puts everything in its place: the tokenizer's and other files, the weights, and config.json at the end.
    pub fn finish(mut self) -> Result<()> {
        let mut staging = self.staging.take().expect("open until finished");
        let done = self.write_all(&mut staging);
        if done.is_err() {
            // Matrices took long, and what is missing is not theirs.
            staging.keep();
            return done;
        }
        Ok(staging.commit(is_replaced, |name| name.ends_with(PART))?)
    }

    fn write_all(&self, staging: &mut Staging) -> Result<()> {
        let announced: Vec<_> = self.kept.iter().chain(self.parts.values().flatten()).cloned().collect();
        let mut weights = SafetensorsWriter::create_staged(&staging.temporary(WEIGHTS), &announced)?;
        for (name, ..) in &self.kept {
            weights.write(name, &self.kept_tensor(name)?)?;
        }
        for (param, tensors) in &self.parts {
            let file = self.finished(param).unwrap_or_else(|| panic!("CheckpointWriter: `{param}` was not written"));
            for (info, bytes) in self.read_part(staging, &file.name, tensors)? {
                let tensor = HostTensor { dtype: info.dtype, shape: info.shape.clone(), bytes: bytes.into() };
                weights.write(&info.name, &tensor)?;
            }
        }
        weights.finish()?;
        staging.adopt(WEIGHTS);
        for (name, content) in self.source.companion_files()? {
            if !LAYOUT.markers.contains(&&name[..]) {
                staging.write(&name, &content)?;
            }
        }
        for (name, content) in &self.attached {
            staging.write(name, content)?;
        }
        staging.write("quantize_config.json", &to_json(&self.config_json["quantization_config"]))?;
        staging.write("config.json", &to_json(&self.config_json))?;
        Ok(())
    }

    fn finished(&self, param: &str) -> Option<&Finished> {
        self.finished.iter().find(|file| file.name.ends_with(PART) && param_of(&file.name) == param)
    }

    /// Tensors of a file of one parameter.
    fn read_part(&self, staging: &Staging, name: &str, tensors: &[Announced]) -> Result<Vec<(TensorInfo, Vec<u8>)>> {
        let path = staging.temporary(name);
        let content = fs::read(&path);
        let content =
            content.map_err(|source| model_format::Error::Io { action: "read", path: path.clone(), source })?;
        let mut rest = &content[..];
        let mut parts = Vec::with_capacity(tensors.len());
        for (name, dtype, shape) in tensors {
            let len = shape.iter().product::<usize>() * dtype.size();
            let (bytes, after) = rest.split_at_checked(len).expect("the journal vouches for the file's length");
            rest = after;
            let info = TensorInfo {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                file: path.display().to_string(),
            };
            parts.push((info, bytes.to_vec()));
        }
        Ok(parts)
    }

    /// Calibration text that the model has written, file by file, with what went into the head.
    fn texts(&self) -> Result<Vec<(Vec<Vec<u32>>, Option<HeadInputs>)>> {
        let staging = self.staging.as_ref().expect("open until finished");
        let read = |file: &Finished| {
            let path = staging.temporary(&file.name);
            let bytes = fs::read(&path).map_err(|source| model_format::Error::Io { action: "read", path, source })?;
            let number = |i: usize| file.note[i].as_u64().unwrap_or(0) as usize;
            let (count, seq_len) = (number(0), number(1).max(1));
            let (tokens, head) = bytes.split_at_checked(4 * count * seq_len).unwrap_or_default();
            let tokens: Vec<u32> = tokens.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            Ok((tokens.chunks_exact(seq_len).map(<[u32]>::to_vec).collect(), HeadInputs::from_bytes(count, head)))
        };
        self.finished.iter().filter(|file| file.name.starts_with(TEXT)).map(read).collect()
    }

    /// A file that is complete, with what is to be known of it.
    fn add_part<'b>(&mut self, name: String, pieces: impl Iterator<Item = &'b [u8]>, note: Value) -> Result<()> {
        let staging = self.staging.as_mut().expect("open until finished");
        let mut file = staging.create(&name)?;
        for piece in pieces {
            file.write(piece)?;
        }
        self.note(Finished { note, ..file.finish()? })
    }

    /// Tells the journal of a file.
    fn note(&mut self, finished: Finished) -> Result<()> {
        self.staging.as_mut().expect("open until finished").finished(&finished)?;
        self.finished.push(finished);
        Ok(())
    }

    /// A tensor that stays as it is.
    fn kept_tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        let info = self.source.info(name).expect("a tensor of the source");
        if !is_float(info.dtype) {
            return Ok(self.source.tensor(name)?);
        }
        let values = read_float(self.source, name, &info.shape)?;
        to_f16(name, info.shape.clone(), &values)
    }

    /// Refuses a disk without room for the checkpoint and the files that it is put together from.
    fn check_space(&self) -> Result<()> {
        let bytes = |tensors: &mut dyn Iterator<Item = &Announced>| -> u64 {
            tensors.map(|(_, dtype, shape)| (shape.iter().product::<usize>() * dtype.size()) as u64).sum()
        };
        let needed = 2 * bytes(&mut self.parts.values().flatten()) + bytes(&mut self.kept.iter());
        // Where the system does not say, it is found out by writing.
        match fs4::available_space(&self.folder) {
            Ok(available) if available < needed => {
                Err(Error::NoSpace { folder: self.folder.clone(), needed, available })
            }
            _ => Ok(()),
        }
    }
}

impl Store for CheckpointWriter<'_> {
    fn values(&mut self, param: &Param) -> Result<Option<Vec<f32>>> {
        let Some(file) = self.finished(&param.name) else { return Ok(None) };
        let staging = self.staging.as_ref().expect("open until finished");
        let tensors = self.read_part(staging, &file.name, &self.parts[&param.name])?;
        let (infos, bytes) = tensors.into_iter().unzip();
        let part = Part { config_json: self.config_json.to_string(), infos, bytes };
        Ok(Some(read_param(&part, param)?))
    }

    fn has(&self, param: &Param) -> bool {
        self.finished(&param.name).is_some()
    }

    fn prepare(&mut self, param: &Param, quantized: &Arc<Quantized>) -> Result<Option<Writing>> {
        let mut file = self.staging.as_mut().expect("open until finished").create(&part_of(&param.name))?;
        let (param, quantized, config) = (param.clone(), Arc::clone(quantized), self.config.clone());
        let (announced, prepared) = (self.parts[&param.name].clone(), Arc::clone(&self.prepared));
        Ok(Some(Box::new(move || {
            for (_, tensor) in pack(&param, &quantized, &config, &announced)? {
                file.write(&tensor.bytes)?;
            }
            prepared.lock().unwrap_or_else(PoisonError::into_inner).push(file.finish()?);
            Ok(())
        })))
    }

    fn add(&mut self, param: &Param, quantized: &Quantized, report: &MatrixReport) -> Result<()> {
        let (name, note) = (part_of(&param.name), serde_json::to_value(report).expect("a report serializes"));
        let prepared = {
            let mut files = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
            files.iter().position(|file| file.name == name).map(|at| files.swap_remove(at))
        };
        if let Some(file) = prepared {
            return self.note(Finished { note, ..file });
        }
        let tensors = pack(param, quantized, &self.config, &self.parts[&param.name])?;
        self.add_part(name, tensors.iter().map(|(_, tensor)| &tensor.bytes[..]), note)
    }

    fn text(&mut self) -> Result<Vec<Vec<u32>>> {
        Ok(self.texts()?.into_iter().flat_map(|(windows, _)| windows).collect())
    }

    fn head_inputs(&mut self) -> Result<Vec<HeadInputs>> {
        Ok(self.texts()?.into_iter().filter_map(|(_, head)| head).collect())
    }

    fn add_text(&mut self, windows: &[Vec<u32>], head: Option<&HeadInputs>) -> Result<()> {
        let texts = self.finished.iter().filter(|file| file.name.starts_with(TEXT)).count();
        let tokens: Vec<u8> = windows.iter().flatten().flat_map(|token| token.to_le_bytes()).collect();
        let head = head.map(HeadInputs::to_bytes).unwrap_or_default();
        let note = [windows.len(), windows.first().map_or(0, Vec::len)];
        self.add_part(format!("{TEXT}{texts}{PART}"), [&tokens[..], &head].into_iter(), json!(note))
    }
}

/// What a run leaves when it is ended stays, if there is a journal of it.
impl Drop for CheckpointWriter<'_> {
    fn drop(&mut self) {
        if let Some(staging) = &mut self.staging {
            staging.keep();
        }
    }
}

/// How names of files of calibration text begin; no parameter is called so.
const TEXT: &str = "calibration-text-";

/// The file of a parameter.
fn part_of(param: &str) -> String {
    format!("{param}{PART}")
}

/// The parameter that a file is of.
fn param_of(name: &str) -> &str {
    name.strip_suffix(PART).unwrap_or(name)
}

/// What a checkpoint holds of a matrix: the tensors that were announced of it.
fn pack(
    param: &Param,
    quantized: &Quantized,
    config: &GptqConfig,
    announced: &[Announced],
) -> Result<Vec<(String, HostTensor<'static>)>> {
    let mut tensors = Vec::new();
    let in_codes = param.role.is_layer_matrix() || (param.role == Role::LmHead && config.lm_head);
    if in_codes {
        let mut starts = vec![0; param.sources.len()];
        (1..starts.len()).for_each(|i| starts[i] = starts[i - 1] + param.sources[i - 1].rows);
        let parts = param.sources.par_iter().zip(starts).map(|(part, start)| {
            let matrix = quantized.rows_to_checkpoint(start, part.rows);
            Ok(matrix.to_tensors(&config.of_module(part.module())?, part.module()))
        });
        tensors.extend(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten());
    } else {
        let [part] = &param.sources[..] else { panic!("`{}` is one tensor of a checkpoint", param.name) };
        tensors.push((part.name.clone(), values_in_f16(&part.name, quantized)?));
    }
    let written = tensors.iter().map(|(name, tensor)| (name, tensor.dtype, &tensor.shape));
    assert!(announced.iter().map(|(name, dtype, shape)| (name, *dtype, shape)).eq(written), "{announced:?}");
    Ok(tensors)
}

/// The tensors of one parameter of a checkpoint that is not whole yet.
struct Part {
    config_json: String,
    infos: Vec<TensorInfo>,
    bytes: Vec<Vec<u8>>,
}

impl Checkpoint for Part {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn tensor(&self, name: &str) -> model_format::Result<HostTensor<'_>> {
        let at = self.infos.iter().position(|info| info.name == name).ok_or_else(|| missing_param(self, name))?;
        let TensorInfo { dtype, shape, .. } = &self.infos[at];
        Ok(HostTensor { dtype: *dtype, shape: shape.clone(), bytes: (&self.bytes[at][..]).into() })
    }

    fn location(&self) -> String {
        self.infos.first().map_or(String::new(), |info| info.file.clone())
    }

    fn config_json(&self) -> &str {
        &self.config_json
    }

    fn companion_files(&self) -> model_format::Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
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

/// The values of a matrix. It may be large, so that they are not there in f32 too.
fn values_in_f16(name: &str, quantized: &Quantized) -> Result<HostTensor<'static>> {
    let (rows, cols) = quantized.codes.dim();
    let mut bytes = vec![0; 2 * rows * cols];
    bytes.par_chunks_mut((2 * cols).max(1)).enumerate().try_for_each(|(row, bytes)| {
        let values = to_f16(name, vec![cols], &quantized.row(row))?;
        bytes.copy_from_slice(&values.bytes);
        Ok::<_, Error>(())
    })?;
    Ok(HostTensor { dtype: Dtype::F16, shape: vec![rows, cols], bytes: bytes.into() })
}

fn to_json(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("a JSON value serializes");
    text.push(b'\n');
    text
}
