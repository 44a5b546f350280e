//! `export-cases FOLDER` writes the kernels' cases in a browser's variants, for `tests/dawn/`.
//!
//! It writes the smallest test case of each variant: text of the shader, buffers, dispatches, and expected outputs. It needs a device to
//! record on, but runs nothing.

use std::{
    collections::HashMap,
    error::Error,
    fs::{self, File},
    io::{BufWriter, Write},
    path::PathBuf,
};

use serde_json::{Value, json};
use webgpu_kernels::{
    KERNELS, Kernel, KvDtype,
    gpu::{Caps, Gpu, OpenOptions, Recorder, Selection, SubgroupSizes, block_on},
    kernel::{Access, Purpose},
    selftest::smallest_cases,
};

/// Words after the end of each buffer. A kernel must not change them.
const GUARD: [u32; 64] = [0x7fc0_dead; 64];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: export-cases FOLDER")?);
    fs::create_dir_all(&folder)?;
    let mut export = Export {
        words: BufWriter::new(File::create(folder.join("words.bin"))?),
        written: 0,
        subgroups: None,
        shaders: Vec::new(),
        indices: HashMap::new(),
        cases: Vec::new(),
    };
    // In a browser, devices are not known as software devices. They have no matrix units, and may have subgroups.
    for subgroups in [true, false] {
        let options =
            OpenOptions { software_kernels: false, cooperative_matrix: false, subgroups, ..OpenOptions::default() };
        let gpu = block_on(Gpu::open(&Selection::Auto, options))?;
        export.subgroups = export.subgroups.or(gpu.caps().subgroups);
        // A browser may have only the default number of storage buffers.
        for kernel in
            KERNELS.iter().filter(|kernel| kernel.bindings.len() <= Caps::WEBGPU_DEFAULTS.max_bindings as usize)
        {
            export.kernel(&gpu, kernel)?;
        }
    }
    export.words.flush()?;
    let subgroups = export.subgroups.map(|sizes| [sizes.min, sizes.max]);
    let cases =
        json!({ "shaders": export.shaders, "cases": export.cases, "guard": GUARD.len(), "subgroups": subgroups });
    fs::write(folder.join("cases.json"), cases.to_string())?;
    println!("{} cases, {} shaders", export.cases.len(), export.shaders.len());
    Ok(())
}

struct Export {
    words: BufWriter<File>,
    written: usize,
    /// Sizes of subgroups of the exported variants.
    subgroups: Option<SubgroupSizes>,
    shaders: Vec<Value>,
    /// Index of each shader's text.
    indices: HashMap<String, usize>,
    cases: Vec<Value>,
}

impl Export {
    fn kernel(&mut self, gpu: &Gpu, kernel: &'static Kernel) -> Result<(), Box<dyn Error>> {
        for case in smallest_cases(gpu, kernel) {
            let host = (case.buffers)();
            let mut buffers = Vec::new();
            let mut device = Vec::new();
            for buffer in &host {
                let guarded: Vec<u32> = buffer.words.iter().chain(&GUARD).copied().collect();
                device.push(gpu.upload(&guarded)?);
                let purpose = match buffer.purpose {
                    Purpose::Input => "input".to_string(),
                    Purpose::F32 | Purpose::Kv(KvDtype::F32, _) => "f32".to_string(),
                    Purpose::Kv(KvDtype::F16, _) => "f16".to_string(),
                    Purpose::Kv(KvDtype::Q8, head_dim) => format!("q8 {head_dim}"),
                    Purpose::U32 => "u32".to_string(),
                };
                let id = device[device.len() - 1].id();
                buffers.push(json!({"id": id, "words": self.write(&guarded)?, "purpose": purpose}));
            }
            let mut recorder = Recorder::tracing(gpu);
            (case.record)(&mut recorder, &device);
            let mut uploads = Vec::new();
            for upload in recorder.take_uploads() {
                uploads.push(json!({"id": upload.id, "words": self.write(&upload.words)?}));
            }
            let mut dispatches = Vec::new();
            let mut is_new = false;
            for traced in recorder.take_trace() {
                let shader = self.shader(traced.kernel, &traced.kernel.browser_source(&traced.variant), &mut is_new);
                let bindings = traced.bindings.iter();
                let bindings = bindings.map(|b| json!({"id": b.id, "offset": b.offset, "size": b.size}));
                dispatches.push(json!({
                    "shader": shader,
                    "params": self.write(&traced.params.chunks_exact(4).map(word).collect::<Vec<_>>())?,
                    "bindings": bindings.collect::<Vec<_>>(),
                    "groups": [traced.groups.0, traced.groups.1],
                }));
            }
            if !is_new {
                // A device with other capabilities has the same case.
                continue;
            }
            let mut expected = Vec::new();
            for values in (case.reference)(&host) {
                expected.push(self.write(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())?);
            }
            self.cases.push(json!({
                "name": format!("{} {} [{}]", kernel.name, case.label, case.variant),
                "tolerance": case.tolerance,
                "buffers": buffers,
                "uploads": uploads,
                "dispatches": dispatches,
                "expected": expected,
            }));
        }
        Ok(())
    }

    /// The index of a shader's text. Sets `is_new` if it is new.
    fn shader(&mut self, kernel: &Kernel, wgsl: &str, is_new: &mut bool) -> usize {
        if !self.indices.contains_key(wgsl) {
            *is_new = true;
            let access = |access: &Access| if *access == Access::Read { "read-only-storage" } else { "storage" };
            let bindings: Vec<&str> = kernel.bindings.iter().map(access).collect();
            self.indices.insert(wgsl.to_string(), self.shaders.len());
            self.shaders.push(json!({"wgsl": wgsl, "bindings": bindings, "params": kernel.params.size}));
        }
        self.indices[wgsl]
    }

    /// Writes words to the file. Returns the index of the first one and their number.
    fn write(&mut self, words: &[u32]) -> Result<Value, Box<dyn Error>> {
        let first = self.written;
        for word in words {
            self.words.write_all(&word.to_le_bytes())?;
        }
        self.written += words.len();
        Ok(json!([first, words.len()]))
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
