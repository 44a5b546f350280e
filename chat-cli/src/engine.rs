//! [`EngineAssistant`]: an [`Assistant`] that waits for the engine on this thread.

use std::io;

use chat_cli::{Answer, Assistant, Result};
use infer_core::{ChatDefaults, Engine, GpuError, LoadedModel, Message, SamplingParams, block_on};

use crate::terminal::Interrupt;

/// A loaded model that answers.
pub struct EngineAssistant {
    engine: Engine,
    device: String,
    interrupt: Interrupt,
    reload: Reload,
}

/// Reloads the model after its device was lost.
pub type Reload = Box<dyn FnMut() -> anyhow::Result<LoadedModel>>;

/// Device losses that an answer survives.
const MAX_LOSSES: usize = 2;

impl EngineAssistant {
    /// A model on `device`. `interrupt` ends its answers; `reload` runs if the device is lost.
    pub fn new(engine: Engine, device: String, interrupt: Interrupt, reload: Reload) -> EngineAssistant {
        EngineAssistant { engine, device, interrupt, reload }
    }

    /// The sampling settings that apply if the user sets none.
    pub fn chat_defaults(&self) -> &ChatDefaults {
        self.engine.chat_defaults()
    }

    /// The name of its device.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Assistant for EngineAssistant {
    fn answer(
        &mut self,
        messages: &[Message],
        params: &SamplingParams,
        show: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer> {
        let prompt_tokens = self.engine.chat_tokens(messages)?;
        let interrupt = self.interrupt.begin();
        let mut generation = self.engine.chat(messages, params.clone())?;
        let mut text = String::new();
        let mut logprobs = Vec::new();
        let mut losses = 0;
        while !interrupt.is_interrupted() {
            let chunk = match block_on(generation.next()) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error @ infer_core::Error::Gpu(GpuError::DeviceLost { .. })) if losses < MAX_LOSSES => {
                    losses += 1;
                    eprintln!("warning: {error}; loading the model again");
                    let suspended = generation.suspend();
                    // If reloading fails too, report the first error.
                    let Ok(model) = (self.reload)() else { return Err(error.into()) };
                    generation = block_on(self.engine.resume(model, suspended));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            show(&chunk.text)?;
            text.push_str(&chunk.text);
            logprobs.extend(chunk.logprobs);
        }
        let (tokens, finish_reason, stats) =
            (generation.tokens().to_vec(), generation.finish_reason(), generation.stats());
        if let Some(notice) = self.engine.take_notice() {
            eprintln!("warning: {notice}");
        }
        Ok(Answer { text, prompt_tokens, tokens, finish_reason, stats, logprobs })
    }

    fn reset(&mut self) {
        self.engine.reset();
    }
}
