//! Damaged models: loads a folder or file with a few changed bytes or values and generates an answer, like `chat-cli chat`. The model
//! may answer or be refused, but must not panic, hang, or take much memory.
//!
//! `MUTATIONS=1000` sets the number of damaged models.

#[path = "../../model-format/tests/common/mutation.rs"]
mod mutation;

#[path = "damaged/json.rs"]
mod json;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc},
    time::Duration,
};

use infer_core::{
    Device, Engine, LoadOptions, Message, block_on,
    ops::candle::{CpuOptions, CpuWeights},
};
use model_format::{DirFiles, caught};
use model_hub::{HubConfig, Model};
use mutation::Random;

#[global_allocator]
static COUNTING: mutation::Counting = mutation::Counting;

/// Default number of damaged models.
const SLICE: u64 = 1000;
const SEED: u64 = 17;
/// Memory limit in bytes of a model of a hundred thousand weights.
const ALLOWANCE: usize = 256 << 20;
/// Damaged models take less than a second; one that takes this long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// An intact model: the path to open in its folder, and its files.
struct Good {
    name: String,
    opened: &'static str,
    files: Vec<(String, Vec<u8>)>,
}

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

fn files_of(folder: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(testdata(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + (m.content | trim) + '<|end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";

/// A tokenizer of 512 tokens with a post-processor, a normalizer, and tokens outside the model's vocabulary.
fn tokenizer() -> Vec<u8> {
    let text = fs::read(testdata("tokenizer/tiny-bpe/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
    });
    json["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "[ \t]+"}, "content": " "},
    ]});
    json.to_string().into_bytes()
}

/// An intact model of every kind.
fn good_ones() -> Vec<Good> {
    let texts = || {
        [
            ("tokenizer.json", tokenizer()),
            ("tokenizer_config.json", br#"{"bos_token": {"content": "<|bos|>"}, "eos_token": "<|eot|>", "add_bos_token": true, "added_tokens_decoder": {"1": {"content": "<|end|>", "special": true}}, "model_max_length": 512}"#.to_vec()),
            ("special_tokens_map.json", br#"{"bos_token": "<|bos|>", "eos_token": {"content": "<|eot|>"}}"#.to_vec()),
            ("generation_config.json", br#"{"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}"#.to_vec()),
        ]
        .map(|(name, content)| (name.to_string(), content))
    };
    let jinja = || [("chat_template.jinja".to_string(), TEMPLATE.as_bytes().to_vec())];
    let with = |folder: &str, more: Vec<(String, Vec<u8>)>| {
        let mut files = files_of(folder);
        files.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
        files.extend(more);
        Good { name: folder.into(), opened: ".", files }
    };
    let mut all = Vec::new();
    for arch in ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "mistral", "phi3-longrope"] {
        all.push(with(&format!("arch/{arch}/hf"), texts().into_iter().chain(jinja()).collect()));
        let mut mlc = with(&format!("arch/{arch}/q4f16_1"), texts().into());
        for (name, content) in &mut mlc.files {
            if name == "mlc-chat-config.json" {
                let mut config: serde_json::Value = serde_json::from_slice(content).unwrap();
                config["conv_template"]["system_prefix_token_ids"] = serde_json::json!([0]);
                *content = config.to_string().into_bytes();
            }
        }
        all.push(mlc);
    }
    all.push(with("gptq/llama-sym-g32-v1", texts().into_iter().chain(jinja()).collect()));
    let gguf = fs::read(testdata("gguf/tiny.gguf")).unwrap();
    all.push(Good { name: "gguf/tiny.gguf".into(), opened: "tiny.gguf", files: vec![("tiny.gguf".into(), gguf)] });
    all
}

/// Length of the part of a file in which changes have an effect: the header and a few bytes after it.
fn telling_part(name: &str, content: &[u8]) -> usize {
    let header = match name.rsplit('.').next() {
        Some("safetensors") => 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize,
        Some("gguf") => 12 << 10,
        _ => content.len(),
    };
    (header + 16).min(content.len())
}

/// Damages one file of the model. Returns its name and new content.
fn damage(good: &Good, random: &mut Random) -> (String, Vec<u8>) {
    let (name, content) = &good.files[random.below(good.files.len())];
    if random.below(3) > 0
        && let Some(edited) = json::edited(content, random)
    {
        return (name.clone(), edited);
    }
    let part = telling_part(name, content);
    let mut damaged = mutation::spoiled(&content[..part], random);
    damaged.extend(&content[part..]);
    (name.clone(), damaged)
}

/// Opens the model at `path`, loads it onto the CPU, and generates two tokens.
fn answer(path: &Path, context: Option<usize>, hub: &HubConfig) -> Result<usize, String> {
    let model = model_hub::open(path.to_str().unwrap(), hub, &mut ()).map_err(|e| e.to_string())?;
    let device = Device::Cpu(CpuOptions { weights: CpuWeights::Integer, ..CpuOptions::default() });
    let options = LoadOptions { context, memory: Some(1 << 30), ..LoadOptions::default() };
    let loaded = match &model {
        Model::Checkpoint(checkpoint) => block_on(Engine::load_checkpoint(&**checkpoint, device, &options, &mut ())),
        Model::Mlc(folder) => block_on(Engine::load_mlc(&DirFiles::new(folder), device, &options, &mut ())),
    };
    let engine = loaded.map_err(|e| e.to_string())?;
    let params =
        infer_core::SamplingParams { max_tokens: Some(2), seed: Some(1), ..engine.chat_defaults().params().clone() };
    let messages = [Message::user("Hello <|end|> 日本\n 12"), Message::assistant("Yes."), Message::user(" x")];
    let mut answer = engine.chat(&messages, params).map_err(|e| e.to_string())?;
    while block_on(answer.next()).map_err(|e| e.to_string())?.is_some() {}
    Ok(answer.tokens().len())
}

/// The result for a model (`None` for a panic), and the bytes that it allocated.
type Outcome = (Option<Result<usize, String>>, usize);

/// A thread that generates answers with one model after another.
fn answering(hub: HubConfig) -> (mpsc::Sender<(PathBuf, Option<usize>)>, mpsc::Receiver<Outcome>) {
    let (ask, asked) = mpsc::channel::<(PathBuf, Option<usize>)>();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for (path, context) in asked {
            let run = || std::panic::catch_unwind(|| answer(&path, context, &hub)).ok();
            let outcome = mutation::held_by(run);
            if tell.send(outcome).is_err() {
                break;
            }
        }
    });
    (ask, told)
}

/// Panics that were not caught.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Panics of foreign parsers, which become errors.
static CAUGHT: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn a_damaged_model_answers_or_is_refused() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if caught::is_caught() {
            CAUGHT.lock().unwrap().push(info.to_string());
        } else {
            PANICS.lock().unwrap().push(info.to_string());
            before(info);
        }
    }));
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap().to_string();
    let hub = HubConfig::from_vars(|name| (name == "HF_HOME").then(|| home.clone())).unwrap();
    let good = good_ones();
    let (ask, told) = answering(hub);
    let run = |folder: &Path, good: &Good, context| {
        ask.send((folder.join(good.opened), context)).unwrap();
        told.recv_timeout(HANGS_AFTER).ok()
    };
    let write = |folder: &Path, files: &[(String, Vec<u8>)]| {
        fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, content)| fs::write(folder.join(name), content).unwrap());
    };

    for good in &good {
        let place = folder.path().join("whole");
        write(&place, &good.files);
        let outcome = run(&place, good, Some(512)).expect("it ends").0;
        assert!(matches!(outcome, Some(Ok(1 | 2))), "{} is whole: {outcome:?}", good.name);
        fs::remove_dir_all(&place).unwrap();
    }

    let copies = std::env::var("MUTATIONS").map_or(SLICE, |count| count.parse().expect("MUTATIONS is a number"));
    let (mut answered, mut refused) = (0, 0);
    let mut bad = Vec::new();
    for copy in 0..copies {
        let mut random = Random(SEED << 32 | copy);
        let good = &good[random.below(good.len())];
        let (name, content) = damage(good, &mut random);
        let place = folder.path().join(copy.to_string());
        write(&place, &good.files);
        fs::write(place.join(&name), content).unwrap();
        let what = match run(&place, good, (copy % 4 > 0).then_some(512)) {
            None => "hangs".to_string(),
            Some((None, _)) => PANICS.lock().unwrap().pop().unwrap_or_default(),
            Some((Some(_), taken)) if taken > ALLOWANCE => format!("takes {taken} bytes"),
            Some((Some(result), _)) => {
                *(if result.is_ok() { &mut answered } else { &mut refused }) += 1;
                fs::remove_dir_all(&place).unwrap();
                continue;
            }
        };
        let hangs = what == "hangs";
        bad.push(format!("copy {copy}, `{name}` of {}, at {}: {what}", good.name, place.display()));
        if hangs {
            break;
        }
    }
    eprintln!("{copies} damaged models, seed {SEED}: {answered} answer, {refused} are refused, {} fail", bad.len());
    eprintln!("panics of parsers that were caught: {:?}", CAUGHT.lock().unwrap());
    if !bad.is_empty() {
        // Keep the failing models for inspection.
        let _ = folder.keep();
        panic!("{}", bad.join("\n"));
    }
    assert!(PANICS.lock().unwrap().is_empty());
    // Both outcomes occur, so the changes are neither too small nor too large.
    assert!(answered * 10 >= copies && refused * 10 >= copies, "{answered} answered, {refused} refused");
}
