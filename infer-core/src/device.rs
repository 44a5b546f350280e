//! [`Device`]: what a model is loaded onto; and the loaded model, whichever that is.

use model_format::{Checkpoint, DecoderConfig, ModelFiles, QuantFormat};
use webgpu_kernels::{Gpu, KvDtype};

#[cfg(feature = "native")]
use crate::ops::candle::{CandleOps, CpuWeights};
use crate::{
    Progress, Result,
    model::{Session, load_checkpoint, load_mlc},
    ops::{Choose, gpu::GpuOps},
};

/// What a model is loaded onto.
pub enum Device {
    /// The CPU, through candle.
    #[cfg(feature = "native")]
    Cpu(CpuWeights),
    /// A GPU, with caches of this number type.
    Gpu(Gpu, KvDtype),
}

/// A loaded model on its device.
pub(crate) enum Model {
    #[cfg(feature = "native")]
    Cpu(Session<CandleOps>),
    Gpu(Session<GpuOps>),
}

/// The same call on whichever session there is.
macro_rules! on_session {
    ($model:expr, $session:ident => $call:expr) => {
        match $model {
            #[cfg(feature = "native")]
            Model::Cpu($session) => $call,
            Model::Gpu($session) => $call,
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
        async fn session<O: Choose>(
            mut ops: O,
            config: &DecoderConfig,
            format: &'static QuantFormat,
            files: &impl ModelFiles,
            context: usize,
            progress: &mut dyn Progress,
        ) -> Result<Session<O>> {
            let parts = load_mlc(&mut ops, config, format, files, progress).await?;
            Session::new(ops, config, parts, context)
        }
        Ok(match device {
            #[cfg(feature = "native")]
            Device::Cpu(weights) => {
                Model::Cpu(session(CandleOps::new(weights), config, format, files, context, progress).await?)
            }
            Device::Gpu(gpu, kv) => {
                Model::Gpu(session(GpuOps::new(gpu, kv), config, format, files, context, progress).await?)
            }
        })
    }

    pub(crate) fn load_checkpoint(
        device: Device,
        config: &DecoderConfig,
        checkpoint: &dyn Checkpoint,
        context: usize,
        progress: &mut dyn Progress,
    ) -> Result<Model> {
        fn session<O: Choose>(
            mut ops: O,
            config: &DecoderConfig,
            checkpoint: &dyn Checkpoint,
            context: usize,
            progress: &mut dyn Progress,
        ) -> Result<Session<O>> {
            // Four-bit matrices of a GPTQ checkpoint stay in four bits.
            let format = QuantFormat::by_name("q4f16_1").expect("a known format");
            let parts = load_checkpoint(&mut ops, config, checkpoint, Some(format), progress)?;
            Session::new(ops, config, parts, context)
        }
        Ok(match device {
            #[cfg(feature = "native")]
            Device::Cpu(weights) => {
                Model::Cpu(session(CandleOps::new(weights), config, checkpoint, context, progress)?)
            }
            Device::Gpu(gpu, kv) => Model::Gpu(session(GpuOps::new(gpu, kv), config, checkpoint, context, progress)?),
        })
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
