//! Flags of several commands: the model, its kernels and number types.

use clap::Args;
use infer_core::{DeviceChoice, KvDtype, ops::candle::CpuWeights};

/// A model and the device that runs it.
#[derive(Args)]
pub struct ModelArguments {
    /// An MLC folder, a Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    pub model: String,

    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// Arithmetic of products with quantized matrices on the CPU
    #[arg(long, value_enum, default_value_t = Products::Exact, value_name = "PRODUCTS")]
    pub cpu_weights: Products,

    #[command(flatten)]
    pub kernels: KernelArguments,

    /// Print only the result and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// The device of an answer or a benchmark, and its number types.
#[derive(Args)]
pub struct DeviceArguments {
    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// Arithmetic of products with quantized matrices on the CPU
    #[arg(long, value_enum, default_value_t = Products::Integer, value_name = "PRODUCTS")]
    pub cpu_weights: Products,

    #[command(flatten)]
    pub kernels: KernelArguments,

    /// Number type of the cache [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,
}

/// A model, or a shape with random weights.
#[derive(Args)]
pub struct SubjectArguments {
    /// An MLC folder, a Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    pub model: Option<String>,

    /// Random weights of a published shape, such as smollm2-135m; an unknown name lists the shapes
    #[arg(long, value_name = "SHAPE")]
    pub shape: Option<String>,

    /// Quantization format of a shape
    #[arg(long, default_value = "q4f16_1", value_name = "FORMAT", requires = "shape")]
    pub format: String,
}

/// Selection of kernel variants on a GPU.
#[derive(Args)]
pub struct KernelArguments {
    /// Multiply in f32, like a browser, even if the GPU has matrix units for f16
    #[arg(long)]
    pub no_cooperative_matrix: bool,

    /// Skip autotuning; use presets
    #[arg(long)]
    pub no_tune: bool,
}

/// Number types of the KV cache.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Cache {
    /// Half the memory of f32
    F16,
    /// Exact
    F32,
    /// Eight bits and a scale per 32 values: a little more than a quarter of the memory of f32
    Q8,
}

impl From<Cache> for KvDtype {
    fn from(cache: Cache) -> KvDtype {
        match cache {
            Cache::F16 => KvDtype::F16,
            Cache::F32 => KvDtype::F32,
            Cache::Q8 => KvDtype::Q8,
        }
    }
}

/// Arithmetic of products with quantized matrices on the CPU. Other matrices are multiplied in f32.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Products {
    /// In f32: the reference
    Exact,
    /// In integers, with activations rounded to eight bits: several times as fast
    Integer,
}

impl From<Products> for CpuWeights {
    fn from(products: Products) -> CpuWeights {
        match products {
            Products::Exact => CpuWeights::Exact,
            Products::Integer => CpuWeights::Integer,
        }
    }
}
