//! [`EngineAssistant`]: the engine as the one who answers. Waits for it on this thread.

use std::io;

use chat_cli::{Answer, Assistant, Result};
use infer_core::{ChatDefaults, Engine, GpuError, LoadedModel, Message, SamplingParams, block_on};

use crate::terminal::Interrupt;

/// A loaded model.
pub struct EngineAssistant {
    engine: Engine,
    device: String,
    interrupt: Interrupt,
    reload: Reload,
}

/// Loads the model again, onto the device as it is then.
pub type Reload = Box<dyn FnMut() -> anyhow::Result<LoadedModel>>;

/// How often a device may be lost within an answer.
const MOST_LOSSES: usize = 2;

impl EngineAssistant {
    /// A model on `device`, whose answers `interrupt` ends.
    ///
    /// `reload` loads the model again where the device was lost.
    pub fn new(engine: Engine, device: String, interrupt: Interrupt, reload: Reload) -> EngineAssistant {
        EngineAssistant { engine, device, interrupt, reload }
    }

    /// The settings where the user gives none.
    pub fn chat_defaults(&self) -> &ChatDefaults {
        self.engine.chat_defaults()
    }

    /// Where it runs.
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
                Err(error @ infer_core::Error::Gpu(GpuError::DeviceLost { .. })) if losses < MOST_LOSSES => {
                    losses += 1;
                    eprintln!("warning: {error}; loading the model again");
                    let suspended = generation.suspend();
                    // What went wrong first says more than what went wrong after it.
                    let Ok(model) = (self.reload)() else { return Err(error.into()) };
                    generation = self.engine.resume(model, suspended);
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
