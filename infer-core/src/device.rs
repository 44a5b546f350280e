//! [`Device`]: what a model is loaded onto; and the loaded model, whichever that is.

use model_format::{Checkpoint, DecoderConfig, ModelFiles, QuantFormat};

use crate::{
    Progress, Result,
    model::{Session, load_checkpoint, load_mlc},
    ops::candle::{CandleOps, CpuWeights},
};

/// What a model is loaded onto.
#[derive(Debug)]
pub enum Device {
    /// The CPU, through candle.
    Cpu(CpuWeights),
}

/// A loaded model on its device.
pub(crate) enum Model {
    Cpu(Session<CandleOps>),
}

/// The same call on whichever session there is.
macro_rules! on_session {
    ($model:expr, $session:ident => $call:expr) => {
        match $model {
            Model::Cpu($session) => $call,
        }
    };
}

impl Model {
    pub(crate) async fn load_mlc(
        device: Device,
        config: &DecoderConfig,
        format: &'static QuantFormat,
        files: &impl ModelFiles,
        context: usize,
        progress: &mut dyn Progress,
    ) -> Result<Model> {
        match device {
            Device::Cpu(weights) => {
                let mut ops = CandleOps::new(weights);
                let parts = load_mlc(&mut ops, config, format, files, progress).await?;
                Ok(Model::Cpu(Session::new(ops, config, parts, context)?))
            }
        }
    }

    pub(crate) fn load_checkpoint(
        device: Device,
        config: &DecoderConfig,
        checkpoint: &dyn Checkpoint,
        context: usize,
        progress: &mut dyn Progress,
    ) -> Result<Model> {
        match device {
            Device::Cpu(weights) => {
                let mut ops = CandleOps::new(weights);
                let parts = load_checkpoint(&mut ops, config, checkpoint, None, progress)?;
                Ok(Model::Cpu(Session::new(ops, config, parts, context)?))
            }
        }
    }

    pub(crate) async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        on_session!(self, session => session.logits(tokens).await)
    }

    pub(crate) async fn most_likely(&mut self, tokens: &[u32]) -> Result<u32> {
        on_session!(self, session => session.most_likely(tokens).await)
    }

    pub(crate) fn common_prefix(&self, tokens: &[u32]) -> usize {
        on_session!(self, session => session.cache().common_prefix(tokens))
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        on_session!(self, session => session.cache_mut().truncate(len));
    }

    /// Tokens that still fit.
    pub(crate) fn room(&self) -> usize {
        on_session!(self, session => session.cache().capacity() - session.cache().len())
    }
}
