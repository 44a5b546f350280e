//! [`ChatEngine`]: a loaded model that answers conversations.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use infer_core::{
    Device, DeviceCache, Engine, Error, Generation, GpuError, KvDtype, LoadOptions, LoadedModel, Message, Progress,
    SamplingParams, Stats, Suspended, TokenLogprobs, Tokenizer, Tuning, chat_template::Role,
};
use js_sys::Function;
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use crate::{
    JsFiles, WebGpu,
    error::{JsResult, bad_request, js_error},
};

/// A loaded model that answers conversations.
#[wasm_bindgen]
pub struct ChatEngine {
    engine: Engine,
    gpu: infer_core::Gpu,
    device_cache: Arc<PageCache>,
    weight_bytes: u64,
    /// Device memory in use after loading, in bytes: weights and KV cache.
    loaded_bytes: u64,
    /// The answer that a lost device interrupted.
    suspended: Option<Suspended>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Options {
    context: Option<usize>,
    device_cache: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct MessageJson {
    role: RoleJson,
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleJson {
    System,
    User,
    Assistant,
    Tool,
}

/// Sampling settings of a request. A missing field means the default (`infer_core::ChatDefaults`).
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct ParamsJson {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
    max_tokens: Option<usize>,
    stop: Option<Vec<String>>,
    logit_bias: Option<HashMap<u32, f32>>,
    logprobs: Option<usize>,
}

impl ParamsJson {
    fn over(self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed.or(defaults.seed),
            max_tokens: self.max_tokens.or(defaults.max_tokens),
            stop: self.stop.unwrap_or_else(|| defaults.stop.clone()),
            logit_bias: self.logit_bias.unwrap_or_default().into_iter().collect(),
            logprobs: self.logprobs,
            ..defaults.clone()
        }
    }
}

#[wasm_bindgen]
impl ChatEngine {
    /// Loads an MLC folder.
    ///
    /// `options` is JSON: `context`, the capacity in tokens; `deviceCache`, an earlier result of
    /// [`ChatEngine::device_cache`] on this adapter. `progress` gets the loaded bytes and the total bytes.
    pub async fn load(gpu: &WebGpu, files: JsFiles, options: &str, progress: Function) -> JsResult<ChatEngine> {
        let Options { context, device_cache } = serde_json::from_str(options).map_err(|e| bad_request(&e))?;
        let gpu = gpu.gpu.clone();
        let device = Device::Gpu(gpu.clone(), KvDtype::default());
        let mut meter = Meter { progress, total: 0 };
        let device_cache = Arc::new(PageCache(Mutex::new(device_cache)));
        let options = load_options(context, &device_cache);
        let loaded = Engine::load_mlc(&files, device, &options, &mut meter).await;
        let engine = loaded.map_err(js_error)?;
        let loaded_bytes = gpu.bytes_in_use();
        // A browser reports out-of-memory errors at the first read. The warm-up also compiles the kernels.
        engine.warm_up().await.map_err(js_error)?;
        Ok(ChatEngine { engine, gpu, device_cache, weight_bytes: meter.total, loaded_bytes, suspended: None })
    }

    /// Continues the answer that a lost device interrupted: loads the model onto `gpu`, a new device, and calls `on_text`
    /// with the rest of the text. [`ChatEngine::load`] describes `progress`, [`ChatEngine::answer`] `on_text`.
    pub async fn resume(
        &mut self,
        gpu: &WebGpu,
        files: JsFiles,
        progress: Function,
        on_text: &Function,
    ) -> JsResult<String> {
        let gpu = gpu.gpu.clone();
        let device = Device::Gpu(gpu.clone(), KvDtype::default());
        let options = load_options(Some(self.engine.context()), &self.device_cache);
        let loaded = LoadedModel::load_mlc(&files, device, &options, &mut Meter { progress, total: 0 }).await;
        let model = loaded.map_err(js_error)?;
        self.loaded_bytes = gpu.bytes_in_use();
        self.gpu = gpu;
        let suspended = self.suspended.take().ok_or_else(|| js_sys::Error::new("no answer was interrupted"))?;
        let tokenizer = self.engine.tokenizer().clone();
        deliver(self.engine.resume(model, suspended).await, &mut self.suspended, &tokenizer, on_text).await
    }

    /// Results about this adapter (the kernels' self-test) for the next [`ChatEngine::load`], as JSON.
    #[wasm_bindgen(js_name = deviceCache)]
    pub fn device_cache(&self) -> String {
        json!(*self.device_cache.files()).to_string()
    }

    /// The model, its device memory in bytes, and its default sampling settings, as JSON.
    pub fn info(&self) -> String {
        let config = self.engine.config();
        let sampling = self.engine.chat_defaults().params();
        let scratch = self.gpu.bytes_in_use().saturating_sub(self.loaded_bytes);
        let checked = self.engine.checked();
        let info = json!({
            "checkedCases": checked.map(|checked| checked.cases),
            "checkedSeconds": checked.map(|checked| checked.seconds),
            "modelType": config.model_type,
            "context": self.engine.context(),
            "weightBytes": self.weight_bytes,
            "cacheBytes": self.loaded_bytes.saturating_sub(self.weight_bytes),
            "scratchBytes": scratch,
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                "max_tokens": sampling.max_tokens,
            },
        });
        info.to_string()
    }

    /// Answers a conversation.
    ///
    /// `messages` is JSON, a list of `role` and `content`; `params` is JSON, sampling settings. `on_text` gets each piece of
    /// text, its token ids, and their log probabilities as JSON if requested; it stops the answer by returning anything but
    /// `true`. The result is JSON: the reason for the end, token counts and times in seconds.
    pub async fn answer(&mut self, messages: &str, params: &str, on_text: &Function) -> JsResult<String> {
        let messages: Vec<MessageJson> = serde_json::from_str(messages).map_err(|e| bad_request(&e))?;
        let messages: Vec<Message> = messages.into_iter().map(MessageJson::into_message).collect();
        let params = self.params(params)?;
        let tokenizer = self.engine.tokenizer().clone();
        deliver(self.engine.chat(&messages, params).map_err(js_error)?, &mut self.suspended, &tokenizer, on_text).await
    }

    /// Continues a plain text without the model's chat template. [`ChatEngine::answer`] describes parameters and result.
    pub async fn complete(&mut self, text: &str, params: &str, on_text: &Function) -> JsResult<String> {
        let params = self.params(params)?;
        let tokenizer = self.engine.tokenizer().clone();
        deliver(self.engine.complete(text, params).map_err(js_error)?, &mut self.suspended, &tokenizer, on_text).await
    }

    /// Clears the KV cache.
    pub fn reset(&mut self) {
        self.engine.reset();
    }

    fn params(&self, params: &str) -> JsResult<SamplingParams> {
        let params: ParamsJson = serde_json::from_str(params).map_err(|e| bad_request(&e))?;
        Ok(params.over(self.engine.chat_defaults().params()))
    }
}

impl MessageJson {
    fn into_message(self) -> Message {
        let role = match self.role {
            RoleJson::System => Role::System,
            RoleJson::User => Role::User,
            RoleJson::Assistant => Role::Assistant,
            RoleJson::Tool => Role::Tool,
        };
        Message::new(role, self.content)
    }
}

fn load_options(context: Option<usize>, device_cache: &Arc<PageCache>) -> LoadOptions {
    // Autotuning needs a finer clock than browsers offer.
    LoadOptions { context, device_cache: Some(device_cache.clone()), tuning: Tuning::Presets, ..Default::default() }
}

/// Pulls an answer until it ends or `on_text` stops it. If the device is lost, the answer goes to `suspended`.
async fn deliver(
    mut generation: Generation,
    suspended: &mut Option<Suspended>,
    tokenizer: &Tokenizer,
    on_text: &Function,
) -> JsResult<String> {
    let mut is_stopped = false;
    loop {
        let chunk = match generation.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                if matches!(error, Error::Gpu(GpuError::DeviceLost { .. })) {
                    *suspended = Some(generation.suspend());
                }
                return Err(js_error(error));
            }
        };
        let tokens = js_sys::Uint32Array::from(&chunk.tokens[..]);
        let logprobs = match &chunk.logprobs[..] {
            [] => JsValue::NULL,
            some => logprobs_json(some, tokenizer)?.to_string().into(),
        };
        let continues = on_text.call3(&JsValue::UNDEFINED, &chunk.text.into(), &tokens, &logprobs)?;
        if continues != JsValue::TRUE && generation.finish_reason().is_none() {
            is_stopped = true;
            break;
        }
    }
    let finish_reason = if is_stopped { Some("abort") } else { generation.finish_reason().map(|it| it.as_str()) };
    Ok(report(finish_reason, &generation.stats()).to_string())
}

/// Log probabilities of tokens, in the form of OpenAI's interface.
fn logprobs_json(logprobs: &[TokenLogprobs], tokenizer: &Tokenizer) -> JsResult<Value> {
    let entry = |&(id, logprob): &(u32, f32)| {
        let token = tokenizer.decode(&[id], false).map_err(js_error)?;
        // Decoding replaces the bytes of an incomplete character, so they are unknown.
        let bytes = (!token.contains(char::REPLACEMENT_CHARACTER)).then_some(token.as_bytes());
        Ok(json!({"token": token, "bytes": bytes, "logprob": logprob}))
    };
    let list = logprobs.iter().map(|token| {
        let mut all = entry(&(token.id, token.logprob))?;
        all["top_logprobs"] = token.top.iter().map(entry).collect::<JsResult<Value>>()?;
        Ok(all)
    });
    list.collect()
}

fn report(finish_reason: Option<&str>, stats: &Stats) -> Value {
    json!({
        "finishReason": finish_reason,
        "promptTokens": stats.prompt_tokens,
        "cachedTokens": stats.cached_tokens,
        "generatedTokens": stats.generated_tokens,
        "timeToFirstToken": stats.time_to_first_token,
        "prefillSeconds": stats.prefill_seconds,
        "decodeSeconds": stats.decode_seconds,
        "prefillTokensPerSecond": stats.prefill_tokens_per_second(),
        "decodeTokensPerSecond": stats.decode_tokens_per_second(),
    })
}

/// Small files that the page stores between visits.
#[derive(Debug)]
struct PageCache(Mutex<BTreeMap<String, String>>);

impl PageCache {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceCache for PageCache {
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        self.files().get(name).map(|text| text.clone().into_bytes())
    }

    fn write(&self, name: &str, content: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(content) else { return false };
        self.files().insert(name.into(), text.into());
        true
    }
}

/// Reports loading progress to JavaScript.
struct Meter {
    progress: Function,
    total: u64,
}

impl Progress for Meter {
    fn loaded(&mut self, done: u64, total: u64) {
        self.total = total;
        // An exception in the callback must not stop loading.
        let _ = self.progress.call2(&JsValue::UNDEFINED, &(done as f64).into(), &(total as f64).into());
    }
}
