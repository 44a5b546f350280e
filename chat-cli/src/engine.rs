//! [`EngineAssistant`]: the engine as the one who answers. Waits for it on this thread.

use std::io;

use chat_cli::{Answer, Assistant, Result};
use infer_core::{Engine, Message, SamplingParams, block_on};

use crate::terminal::Interrupt;

/// A loaded model.
pub struct EngineAssistant {
    engine: Engine,
    device: String,
    interrupt: Interrupt,
}

impl EngineAssistant {
    /// A model on `device`, whose answers `interrupt` ends.
    pub fn new(engine: Engine, device: String, interrupt: Interrupt) -> EngineAssistant {
        EngineAssistant { engine, device, interrupt }
    }

    /// What the model's files recommend.
    pub fn default_sampling(&self) -> &SamplingParams {
        self.engine.default_sampling()
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
        while !interrupt.is_interrupted() {
            let Some(chunk) = block_on(generation.next())? else { break };
            show(&chunk.text)?;
            text.push_str(&chunk.text);
        }
        let (tokens, finish_reason, stats) =
            (generation.tokens().to_vec(), generation.finish_reason(), generation.stats());
        Ok(Answer { text, prompt_tokens, tokens, finish_reason, stats })
    }

    fn reset(&mut self) {
        self.engine.reset();
    }
}
