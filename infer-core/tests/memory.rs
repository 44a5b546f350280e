//! Memory of a model: on the device, and on the host while it is loaded.

mod common;

use std::{
    cell::Cell,
    fs::{self, File},
    io::Write,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use common::{Golden, gpu};
use infer_core::{Device, Error, Gpu, KvDtype, LoadOptions, LoadedModel, Need, OpenOptions, Progress, block_on};
use model_format::{DirFiles, ModelFiles, SafetensorsCheckpoint};

/// A folder that records whether a shard was read.
struct Watched {
    files: DirFiles,
    is_read: Cell<bool>,
}

impl Watched {
    fn new() -> Watched {
        let folder = Golden::open("arch/llama").folder("q4f16_1");
        Watched { files: DirFiles::new(folder), is_read: Cell::new(false) }
    }
}

impl ModelFiles for Watched {
    async fn size(&self, name: &str) -> model_format::Result<u64> {
        self.files.size(name).await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> model_format::Result<Vec<u8>> {
        self.is_read.set(self.is_read.get() || name.starts_with("params_shard"));
        self.files.read_range(name, range).await
    }

    fn location(&self) -> String {
        self.files.location()
    }
}

/// Receives the plan, and checks that no shard was read before.
struct Planned<'a> {
    watched: &'a Watched,
    need: Option<Need>,
}

impl Progress for Planned<'_> {
    fn planned(&mut self, need: &Need) {
        assert!(!self.watched.is_read.get(), "planned after a shard was read");
        self.need = Some(*need);
    }

    fn loaded(&mut self, _: u64, _: u64) {}
}

fn load(gpu: &Gpu, watched: &Watched, options: &LoadOptions) -> infer_core::Result<(LoadedModel, Need)> {
    load_with(gpu, KvDtype::F16, watched, options)
}

fn load_with(
    gpu: &Gpu,
    kv: KvDtype,
    watched: &Watched,
    options: &LoadOptions,
) -> infer_core::Result<(LoadedModel, Need)> {
    let mut planned = Planned { watched, need: None };
    let device = Device::Gpu(gpu.clone(), kv);
    let model = block_on(LoadedModel::load_mlc(watched, device, options, &mut planned))?;
    Ok((model, planned.need.expect("a plan")))
}

#[test]
fn memory_use_equals_the_plan() {
    check_plan(KvDtype::F16);
}

#[test]
fn memory_use_with_an_8_bit_cache_equals_the_plan() {
    check_plan(KvDtype::Q8);
}

fn check_plan(kv: KvDtype) {
    let Some(gpu) = gpu(OpenOptions::default()) else { return };
    let before = gpu.bytes_in_use();
    let (mut model, need) =
        load_with(&gpu, kv, &Watched::new(), &LoadOptions { context: Some(1000), ..Default::default() }).unwrap();
    let loaded = gpu.bytes_in_use() - before;
    // Kernel checks also left scratch buffers in the pool.
    assert!(loaded >= need.weights + need.cache, "{loaded} bytes used, planned {need:?}");
    let text: Vec<u32> = (0..600).map(|i| i * 7 % 512).collect();
    block_on(model.token_losses(&text)).unwrap();
    let scratch = gpu.bytes_in_use() - before - need.weights - need.cache;
    // The logits of 256 rows are needed only for losses, so the plan does not include them.
    assert!(scratch <= need.scratch + 2 * 256 * 512 * 4, "{scratch} bytes of scratch, planned {need:?}");
}

#[test]
fn the_longest_context_that_fits_is_chosen_or_named_in_the_error() {
    let Some(gpu) = gpu(OpenOptions::default()) else { return };
    let watched = Watched::new();
    let (_, whole) = load(&gpu, &watched, &LoadOptions::default()).unwrap();
    let bytes = whole.total() - whole.cache / 4;
    let memory = Some(bytes);
    let (model, need) = load(&gpu, &Watched::new(), &LoadOptions { memory, ..Default::default() }).unwrap();
    assert_eq!((model.context(), model.need()), (need.context, &need));
    assert!(need.context < whole.context && need.total() <= bytes, "{need:?} in {bytes}");

    let watched = Watched::new();
    let options = LoadOptions { memory, context: Some(whole.context), ..Default::default() };
    let error = load(&gpu, &watched, &options).map(|_| ()).unwrap_err();
    assert!(!watched.is_read.get(), "a shard was read before the error");
    let Error::DoesNotFit { longest, .. } = &error else { panic!("{error}") };
    assert_eq!(*longest, Some(need.context));
    assert!(error.hint().unwrap().contains(&need.context.to_string()));
    let options = LoadOptions { memory: Some(1 << 10), ..Default::default() };
    let error = load(&gpu, &Watched::new(), &options).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { longest: None, .. }), "{error}");
}

/// Resident memory of this process in bytes, without mapped files and without buffers of a software device.
fn resident(gpu: &Gpu) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    };
    ((kib("RssAnon") + kib("RssShmem")) << 10).saturating_sub(gpu.bytes_in_use())
}

/// A checkpoint of zeros with a large embedding table: 400 MB in bf16, 800 MB in f32.
fn large_checkpoint(folder: &Path) {
    let (vocab, hidden) = (100_000, 2048);
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": {vocab},
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}}"#
    );
    fs::write(folder.join("config.json"), config).unwrap();
    let matrix = |name: &str, rows: usize, cols: usize| (format!("model.layers.0.{name}.weight"), vec![rows, cols]);
    let vector = |name: &str| (format!("model.{name}.weight"), vec![hidden]);
    let tensors = [
        ("model.embed_tokens.weight".to_string(), vec![vocab, hidden]),
        matrix("self_attn.q_proj", 128, hidden),
        matrix("self_attn.k_proj", 64, hidden),
        matrix("self_attn.v_proj", 64, hidden),
        matrix("self_attn.o_proj", hidden, 128),
        matrix("mlp.gate_proj", 64, hidden),
        matrix("mlp.up_proj", 64, hidden),
        matrix("mlp.down_proj", hidden, 64),
        vector("layers.0.input_layernorm"),
        vector("layers.0.post_attention_layernorm"),
        vector("norm"),
    ];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let first = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [first, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // A sparse file reads as zeros and uses no disk space.
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn loading_needs_little_host_memory() {
    let Some(gpu) = gpu(OpenOptions::default()) else { return };
    let folder = tempfile::tempdir().unwrap();
    large_checkpoint(folder.path());
    let checkpoint = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let (is_done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = resident(&gpu);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                peak.fetch_max(resident(&gpu), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let device = Device::Gpu(gpu.clone(), KvDtype::F16);
        let loaded = block_on(LoadedModel::load_checkpoint(&checkpoint, device, &LoadOptions::default(), &mut ()));
        is_done.store(true, Ordering::Relaxed);
        assert!(gpu.bytes_in_use() > 800_000_000);
        loaded.unwrap();
    });
    let above = peak.load(Ordering::Relaxed).saturating_sub(before) >> 20;
    println!("peak: {above} MiB");
    assert!(above < 256, "{above} MiB of host memory");
}
