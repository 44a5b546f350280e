//! [`Pipelines`]: the data of the caches. `pipeline.rs` fills them.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use crate::Variant;

/// Runs a job on one of the caller's threads, at once or later.
pub type Spawn = fn(Box<dyn FnOnce() + Send>);

/// Starts pipeline compilation in a browser by calling its argument. The future resolves when lookups hit the browser's cache.
#[cfg(target_arch = "wasm32")]
pub type Gather = std::rc::Rc<dyn Fn(&mut dyn FnMut()) -> Coming>;
/// The future of a [`Gather`].
#[cfg(target_arch = "wasm32")]
pub type Coming = std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// Most storage buffers of a kernel. WebGPU's default limit is 8. Kernels with more are for devices with more.
pub(crate) const MAX_BINDINGS: usize = 18;

#[derive(Default)]
pub(crate) struct Pipelines {
    pub layouts: HashMap<&'static str, Arc<Layout>>,
    pub pipelines: HashMap<&'static str, HashMap<Variant, Place>>,
    pub bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
    /// The caller's threads for compilation, and their number.
    pub helpers: Option<(Spawn, usize)>,
    /// The driver's pipeline cache.
    pub kept: Option<wgpu::PipelineCache>,
    /// In a browser: compiles many pipelines at a time; and the compilations that are running.
    #[cfg(target_arch = "wasm32")]
    pub gather: Option<Gather>,
    #[cfg(target_arch = "wasm32")]
    pub coming: Vec<Coming>,
}

/// A pipeline, or an empty place while it is being compiled.
pub(super) type Place = Arc<OnceLock<Arc<Pipeline>>>;

/// The layouts that all variants of a kernel share.
pub(crate) struct Layout {
    pub id: u64,
    pub bind_group: wgpu::BindGroupLayout,
    pub pipeline: wgpu::PipelineLayout,
    pub params_size: u64,
}

pub(crate) struct Pipeline {
    pub layout: Arc<Layout>,
    pub pipeline: wgpu::ComputePipeline,
    /// The reason if it was rejected.
    pub refused: Option<String>,
}

/// Layout, buffer of parameters, then id and offset of each other buffer.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct BindGroupKey {
    pub layout: u64,
    pub uniforms: u64,
    pub buffers: [(u64, u64); MAX_BINDINGS],
}
