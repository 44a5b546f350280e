//! [`CheckpointWriter`]: writes the quantized model for AutoGPTQ, GPTQModel and vLLM.
//!
//! The program opens it before the long work, so that an unusable output folder fails at once. Each finished matrix goes to a
//! file of its own, which survives the process. At the end all are joined into the file that readers load.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use model_format::{
    Checkpoint, Dtype, HostTensor, Param, TensorInfo,
    checkpoint::{SafetensorsWriter, check_float, missing_param, read_float, read_param},
    gptq::GptqConfig,
    staging::{Finished, Staging, difference},
};
use serde_json::{Value, json};

use super::{
    folder::{LAYOUT, QUANTIZER, WEIGHTS, is_replaced, stage},
    tensors::{Announced, PartialCheckpoint, announce, is_float, pack, to_f16},
};
use crate::{
    error::{Error, Result},
    input::source::unquantized_config,
    report::matrix::MatrixReport,
    run::Run,
    settings::{Settings, quantized_params},
    solve::{head_inputs::HeadInputs, quantized::Quantized},
    store::{Store, Writing},
};

/// The suffix of files that exist only until the checkpoint is complete.
const PART: &str = ".part";

/// The fields of config.json that name the number type of unquantized weights.
const DTYPE_FIELDS: [&str; 2] = ["torch_dtype", "dtype"];

/// A GPTQ checkpoint being written. If it is dropped before [`CheckpointWriter::finish`], finished matrices stay on disk for
/// [`CheckpointWriter::resume`], under names that no reader loads.
pub struct CheckpointWriter<'a> {
    source: &'a dyn Checkpoint,
    config: GptqConfig,
    /// The final config.json.
    config_json: Value,
    folder: PathBuf,
    staging: Option<Staging>,
    /// Tensors that are not quantized.
    kept: Vec<Announced>,
    /// Tensors of each quantized parameter, by the parameter's name.
    parts: HashMap<String, Vec<Announced>>,
    /// Journaled files, in the order of writing: one per parameter, and calibration text.
    finished: Vec<Finished>,
    /// Files that another thread has written and that are not in the journal yet.
    prepared: Arc<Mutex<Vec<Finished>>>,
    /// Additional files, by name.
    attached: Vec<(&'static str, Vec<u8>)>,
}

impl<'a> CheckpointWriter<'a> {
    /// Opens `folder` and checks that all of `source` can be written. Tensors that are not quantized are written in f16, integers
    /// unchanged. The embedding table and the head of [`Settings::quantize_ends`] are written as f16 values, because GPTQ's format
    /// has no codes for them.
    ///
    /// The folder must be absent, empty, or hold only an earlier output of this program. The earlier output stays until
    /// [`CheckpointWriter::finish`].
    pub fn create(source: &'a dyn Checkpoint, folder: &Path, settings: &Settings) -> Result<CheckpointWriter<'a>> {
        CheckpointWriter::create_over(source, folder, settings, false)
    }

    /// [`CheckpointWriter::create`]. With `overwrite`, also replaces a GPTQ checkpoint of another program.
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
                announced.extend(announce(&config, part.module(), part.rows, param.shape[1])?);
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

    /// Continues an interrupted `run` in the folder, or discards it with `anew`. Without this call, an interrupted run leaves
    /// nothing. Errors: [`Error::OtherRun`] if the folder holds another interrupted run.
    pub fn resume(&mut self, run: &Run, anew: bool) -> Result<()> {
        let staging = self.staging.as_mut().expect("open until finished");
        if let Some(left) = staging.interrupted_fingerprint()
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

    /// True if the folder holds the finished output of `run`. Removes its remaining temporary files.
    pub fn is_made(&mut self, run: &Run) -> Result<bool> {
        let Ok(json) = fs::read(self.folder.join("config.json")) else { return Ok(false) };
        let config: Value = serde_json::from_slice(&json).unwrap_or_default();
        let is_made = config["quantization_config"]["meta"]["run"] == run.id();
        let staging = self.staging.as_mut().expect("open until finished");
        // A process killed during cleanup can leave an empty journal, or files without a journal.
        let is_ours = |left: String| left.is_empty() || run.difference(&left).is_none();
        if is_made && staging.interrupted_fingerprint().is_none_or(is_ours) {
            staging.resume("")?;
        }
        Ok(is_made)
    }

    /// The first step whose algorithm changed since the checkpoint in the folder was made: its name, its number then and now.
    pub fn changed_step(&self, run: &Run) -> Option<(String, String, String)> {
        let json = fs::read(self.folder.join("config.json")).ok()?;
        let config: Value = serde_json::from_slice(&json).ok()?;
        let Value::Object(steps) = &config["quantization_config"]["meta"]["steps"] else { return None };
        difference("steps", &Value::Object(steps.clone()), run.steps())
    }

    /// The reports of the finished matrices.
    pub fn reports(&self) -> impl Iterator<Item = MatrixReport> {
        let of_matrices = self.finished.iter().filter(|file| self.parts.contains_key(param_of(&file.name)));
        of_matrices.filter_map(|file| serde_json::from_value(file.note.clone()).ok())
    }

    /// Adds a file to the output.
    pub fn attach(&mut self, name: &'static str, content: Vec<u8>) {
        self.attached.push((name, content));
    }

    /// Completes the output: the weights, the tokenizer's and other files, and config.json last.
    pub fn finish(mut self) -> Result<()> {
        let mut staging = self.staging.take().expect("open until finished");
        let done = self.write_all(&mut staging);
        if done.is_err() {
            // Keep the matrices: they took long, and a later run can complete the output.
            staging.keep_finished();
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
        staging.add_external(WEIGHTS);
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

    /// Reads the tensors of one parameter's file.
    fn read_part(&self, staging: &Staging, name: &str, tensors: &[Announced]) -> Result<Vec<(TensorInfo, Vec<u8>)>> {
        let path = staging.temporary(name);
        let content = fs::read(&path);
        let content =
            content.map_err(|source| model_format::Error::Io { action: "read", path: path.clone(), source })?;
        let mut rest = &content[..];
        let mut parts = Vec::with_capacity(tensors.len());
        for (name, dtype, shape) in tensors {
            let len = shape.iter().product::<usize>() * dtype.size();
            let (bytes, after) = rest.split_at_checked(len).expect("the journal has checked the file's length");
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

    /// The calibration text that the model wrote, file by file, with the sums of the head's inputs.
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

    /// Writes a file and journals it with a note.
    fn add_part<'b>(&mut self, name: String, pieces: impl Iterator<Item = &'b [u8]>, note: Value) -> Result<()> {
        let staging = self.staging.as_mut().expect("open until finished");
        let mut file = staging.create(&name)?;
        for piece in pieces {
            file.write(piece)?;
        }
        self.note(Finished { note, ..file.finish()? })
    }

    /// Journals a file.
    fn note(&mut self, finished: Finished) -> Result<()> {
        self.staging.as_mut().expect("open until finished").record_finished(&finished)?;
        self.finished.push(finished);
        Ok(())
    }

    /// A tensor that is not quantized.
    fn kept_tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        let info = self.source.info(name).expect("a tensor of the source");
        if !is_float(info.dtype) {
            return Ok(self.source.tensor(name)?);
        }
        let values = read_float(self.source, name, &info.shape)?;
        to_f16(name, info.shape.clone(), &values)
    }

    /// Checks that the disk has room for the checkpoint and its temporary files. Errors: [`Error::NoSpace`].
    fn check_space(&self) -> Result<()> {
        let bytes = |tensors: &mut dyn Iterator<Item = &Announced>| -> u64 {
            tensors.map(|(_, dtype, shape)| (shape.iter().product::<usize>() * dtype.size()) as u64).sum()
        };
        let needed = 2 * bytes(&mut self.parts.values().flatten()) + bytes(&mut self.kept.iter());
        // If the system does not report the free space, a write may still fail later.
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
        let part = PartialCheckpoint { config_json: self.config_json.to_string(), infos, bytes };
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

/// Keeps the files of an interrupted run that has a journal.
impl Drop for CheckpointWriter<'_> {
    fn drop(&mut self) {
        if let Some(staging) = &mut self.staging {
            staging.keep_finished();
        }
    }
}

/// The prefix of calibration text files. No parameter has such a name.
const TEXT: &str = "calibration-text-";

/// The file name of a parameter.
fn part_of(param: &str) -> String {
    format!("{param}{PART}")
}

/// The parameter of a file name.
fn param_of(name: &str) -> &str {
    name.strip_suffix(PART).unwrap_or(name)
}

fn to_json(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("a JSON value serializes");
    text.push(b'\n');
    text
}
