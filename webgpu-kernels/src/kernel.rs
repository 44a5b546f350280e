//! [`Kernel`]: the record that a kernel folder exports. Tests and benches read the list [`crate::KERNELS`].

use model_format::quant::{QUANT_FORMATS, group_quant::GroupQuant, no_quant};

use crate::{
    KvDtype,
    gpu::{Buffer, Caps, Recorder},
};

/// A shader, the types of its interface, and the cases that check and measure it.
pub struct Kernel {
    /// Name of its folder, or of the operation when a folder holds several.
    pub name: &'static str,
    /// The shader's text, before [`Variant`] is applied.
    pub wgsl: &'static str,
    /// Storage bindings in order, from `@binding(1)`. `@binding(0)` is the uniform [`Params`].
    pub bindings: &'static [Access],
    /// Layout of the uniform.
    pub params: ParamsLayout,
    /// Cases for the tests and the benches.
    pub cases: fn(&Caps, CaseSet) -> Vec<Case>,
    /// When the kernel runs.
    pub usage: Usage,
    /// True if other kernels compute the same. The self-test switches this kernel off if it is wrong, instead of failing.
    pub has_substitute: bool,
    /// True if a recorded dispatch must not be repeated: it changes what it reads.
    pub runs_once: bool,
}

/// When a kernel runs. The self-test of a model uses it to select variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// While a model runs. Its variants follow from the model and the device, so a plan lists them.
    Model,
    /// While a model runs. Its variants also depend on the length of the text and on how tokens are chosen, so a plan is incomplete.
    Answer,
    /// Never while a model answers: the kernel measures or quantizes.
    Offline,
}

impl Kernel {
    /// The fields that most kernels share. Each record replaces the others.
    pub const DEFAULTS: Kernel = Kernel {
        name: "",
        wgsl: "",
        bindings: &[],
        params: ParamsLayout { size: 0, fields: &[] },
        cases: |_, _| Vec::new(),
        usage: Usage::Model,
        has_substitute: false,
        runs_once: false,
    };

    /// The WGSL of a variant for browsers. Naga does not know the line that they need for subgroups.
    pub fn browser_source(&self, variant: &Variant) -> String {
        let enable = if variant.has_flag("SUBGROUPS") { "enable subgroups;\n" } else { "" };
        enable.to_string() + &self.source(variant)
    }
}

/// Access of a kernel to a storage binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// A kernel's uniform: `repr(C)`, fields of four bytes. The `params!` macro implements it.
pub trait Params: bytemuck::Pod {
    /// Size and fields.
    const LAYOUT: ParamsLayout;
}

/// Size and fields of a [`Params`], to compare with WGSL.
#[derive(Debug, Clone, Copy)]
pub struct ParamsLayout {
    /// Size in bytes.
    pub size: usize,
    /// Name and offset of each field.
    pub fields: &'static [(&'static str, usize)],
}

/// Declares a kernel's uniform struct and its [`ParamsLayout`].
macro_rules! params {
    ($(#[$attribute:meta])* $vis:vis struct $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($field: $kind),* }

        impl crate::kernel::Params for $name {
            const LAYOUT: crate::kernel::ParamsLayout = crate::kernel::ParamsLayout {
                size: size_of::<$name>(),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field))),*],
            };
        }
    };
}
pub(crate) use params;

/// One way to build a kernel: constants, flags, and the layout of its weights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    constants: Vec<(&'static str, u32)>,
    flags: Vec<&'static str>,
    pub(crate) weights: Option<WeightFormat>,
    /// Parts of a block that the shader reads as blocks.
    parts: u32,
}

impl Variant {
    /// A variant without constants and flags.
    pub fn new() -> Variant {
        Variant::default()
    }

    /// Adds a constant.
    pub fn constant_is(mut self, name: &'static str, value: u32) -> Variant {
        self.constants.push((name, value));
        self
    }

    /// Adds a flag for `#ifdef`.
    pub fn flag(mut self, name: &'static str) -> Variant {
        self.flags.push(name);
        self
    }

    /// Adds a flag if `is_set`.
    pub fn flag_if(self, name: &'static str, is_set: bool) -> Variant {
        if is_set { self.flag(name) } else { self }
    }

    /// Sets the layout of the weights.
    pub fn weights(self, format: WeightFormat) -> Variant {
        self.weights_in_parts(format, 1)
    }

    /// Sets the layout of the weights. The shader reads each of a block's parts as a block.
    pub(crate) fn weights_in_parts(mut self, format: WeightFormat, parts: u32) -> Variant {
        (self.weights, self.parts) = (Some(format), parts);
        self.flag_if("HALVES", parts == 2).flag_if("QUARTERS", parts == 4)
    }

    /// Adds the flags and constants of shared/invocation.wgsl, if the device has subgroup operations.
    pub fn subgroups(self, caps: &Caps) -> Variant {
        match caps.subgroups {
            Some(sizes) => self
                .flag("SUBGROUPS")
                .flag_if("CLUSTERED", sizes.fixed().is_none())
                .constant_is("SUBGROUP_MIN_SIZE", sizes.min)
                .constant_is("LANE_BITS", sizes.min.ilog2()),
            None => self,
        }
    }

    /// The variant without a flag.
    pub(crate) fn without(&self, flag: &str) -> Variant {
        let mut variant = self.clone();
        variant.flags.retain(|set| *set != flag);
        variant
    }

    /// True if a flag is set, also by the weights.
    pub fn has_flag(&self, name: &str) -> bool {
        self.flags.contains(&name) || self.weights.is_some_and(|weights| weights.flag() == Some(name))
    }

    /// The value of a constant.
    pub fn constant(&self, name: &str) -> Option<u32> {
        self.all_constants().find(|(constant, _)| *constant == name).map(|(_, value)| value)
    }

    /// Every constant, also of the weights.
    pub(crate) fn all_constants(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let of_weights = self.weights.into_iter().flat_map(|weights| weights.constants(self.parts));
        self.constants.iter().copied().chain(of_weights)
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words: Vec<String> = self.weights.iter().map(|weights| weights.to_string()).collect();
        words.extend(self.flags.iter().map(|flag| flag.to_lowercase()));
        words.extend(self.constants.iter().map(|(name, value)| format!("{}={value}", name.to_lowercase())));
        f.write_str(&words.join(" "))
    }
}

/// Storage format of a kernel's weights. `model-format/src/quant` defines the layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Codes in groups with a scale.
    Group {
        /// Bits per code.
        bits: u32,
        /// Weights per scale.
        group_size: u32,
    },
    /// f16, two per word.
    F16,
    /// f32.
    F32,
}

impl WeightFormat {
    /// Weights in a block, the unit that `load_block` reads.
    pub fn block_size(self) -> usize {
        match self {
            WeightFormat::Group { group_size, .. } => group_size as usize,
            WeightFormat::F16 | WeightFormat::F32 => no_quant::BLOCK_SIZE,
        }
    }

    /// Blocks of a row of `cols` weights. The last may be partial.
    pub fn blocks(self, cols: usize) -> usize {
        cols.div_ceil(self.block_size())
    }

    /// Words of a row of `cols` weights on the device, without scales.
    pub(crate) fn row_words(self, cols: usize) -> usize {
        let block_words = match self {
            WeightFormat::Group { .. } => 4,
            WeightFormat::F16 | WeightFormat::F32 => self.block_bytes() / 4,
        };
        self.blocks(cols) * block_words
    }

    /// Scales of a row of `cols` weights.
    pub(crate) fn row_scales(self, cols: usize) -> usize {
        match self {
            WeightFormat::Group { .. } => self.blocks(cols),
            WeightFormat::F16 | WeightFormat::F32 => 0,
        }
    }

    /// Bytes of a block, its scale included.
    pub fn block_bytes(self) -> usize {
        match self {
            WeightFormat::Group { .. } => 16 + 2,
            WeightFormat::F16 => 2 * no_quant::BLOCK_SIZE,
            WeightFormat::F32 => 4 * no_quant::BLOCK_SIZE,
        }
    }

    /// Bytes of a matrix on the device.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> u64 {
        let scales = (rows * self.row_scales(cols)).div_ceil(2) as u64 * 4;
        4 * rows as u64 * self.row_words(cols) as u64 + scales
    }

    pub(crate) fn unpack_wgsl(self) -> &'static str {
        match self {
            WeightFormat::Group { .. } => GroupQuant::UNPACK_WGSL,
            WeightFormat::F16 | WeightFormat::F32 => no_quant::UNPACK_WGSL,
        }
    }

    fn flag(self) -> Option<&'static str> {
        match self {
            WeightFormat::Group { bits: 4, group_size: 32 } => Some("EIGHT_NIBBLES"),
            WeightFormat::F32 => Some("PLAIN_F32"),
            WeightFormat::Group { .. } | WeightFormat::F16 => None,
        }
    }

    /// Parts of a block for kernels whose neighboring lanes read neighboring words. A lane loads one part at a time.
    pub(crate) fn lane_parts(self) -> u32 {
        match self {
            WeightFormat::Group { bits: 4, group_size: 32 } => 2,
            WeightFormat::Group { .. } => 1,
            WeightFormat::F16 | WeightFormat::F32 => 4,
        }
    }

    /// Quads of weights that a lane of a tiled kernel loads at a time.
    pub(crate) fn part_quads(self) -> u32 {
        match self {
            WeightFormat::Group { bits: 4, group_size: 32 } | WeightFormat::F16 => 2,
            WeightFormat::Group { .. } | WeightFormat::F32 => 1,
        }
    }

    fn constants(self, parts: u32) -> Vec<(&'static str, u32)> {
        let mut constants = vec![("QUADS", self.block_size() as u32 / 4 / parts), ("PART_QUADS", self.part_quads())];
        constants.extend(match self {
            WeightFormat::Group { bits, group_size } => {
                vec![("BITS", bits), ("GROUP_SIZE", group_size), ("MAX_INT", (1 << (bits - 1)) - 1)]
            }
            WeightFormat::F16 | WeightFormat::F32 => vec![("BLOCK_WORDS", self.block_bytes() as u32 / 16 / parts)],
        });
        constants
    }
}

impl From<GroupQuant> for WeightFormat {
    fn from(group: GroupQuant) -> WeightFormat {
        WeightFormat::Group { bits: group.bits as u32, group_size: group.group_size as u32 }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WeightFormat::Group { bits, group_size } => write!(f, "q{bits}g{group_size}"),
            WeightFormat::F16 => f.write_str("f16"),
            WeightFormat::F32 => f.write_str("f32"),
        }
    }
}

/// A set of a kernel's cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaseSet {
    /// Quick cases that together reach every corner: odd sizes, one row, many rows.
    Test,
    /// The full shapes of a 3-billion-parameter Llama.
    Bench,
}

/// The product of extents. A browser's 32-bit `usize` could not hold it.
pub(crate) fn product(extents: &[usize]) -> u64 {
    extents.iter().map(|&extent| extent as u64).product()
}

/// One shape of a kernel in one variant: inputs, recording, expected outputs, and cost.
pub struct Case {
    /// Shape and data type, in a few words.
    pub label: String,
    /// The kernel's variant.
    pub variant: Variant,
    /// Floating-point operations. A multiplication and an addition count as two.
    pub flops: u64,
    /// Bytes that a run reads or writes at least once.
    pub bytes: u64,
    /// Largest normalized mean squared error (NMSE).
    pub tolerance: f64,
    /// Makes the buffers, in the order of `record` and `reference`.
    pub buffers: Box<dyn Fn() -> Vec<CaseBuffer> + Send + Sync>,
    /// Records the kernel once.
    pub record: Box<dyn Fn(&mut Recorder, &[Buffer<u32>]) + Send + Sync>,
    /// Computes the expected values of each output from the inputs.
    pub reference: Box<dyn Fn(&[CaseBuffer]) -> Vec<Vec<f32>> + Send + Sync>,
}

/// A buffer of a [`Case`].
pub struct CaseBuffer {
    /// Initial content.
    pub words: Vec<u32>,
    /// Use of the buffer.
    pub purpose: Purpose,
}

/// Use of a [`CaseBuffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Read only.
    Input,
    /// Written, f32.
    F32,
    /// Written, rows of a KV cache. The number is the width of a head.
    Kv(KvDtype, usize),
    /// Written, integers that must be equal to the expected ones.
    U32,
}

impl CaseBuffer {
    /// An input of f32 values.
    pub fn input(values: &[f32]) -> CaseBuffer {
        CaseBuffer { words: bytemuck::cast_slice(values).to_vec(), purpose: Purpose::Input }
    }

    /// An input of words.
    pub fn words(words: Vec<u32>) -> CaseBuffer {
        CaseBuffer { words, purpose: Purpose::Input }
    }

    /// An output of f32 values that starts with `values`.
    pub fn in_out(values: &[f32]) -> CaseBuffer {
        CaseBuffer { words: bytemuck::cast_slice(values).to_vec(), purpose: Purpose::F32 }
    }

    /// An output of `len` f32 values. It starts with NaN, so that a missing write shows.
    pub fn output(len: usize) -> CaseBuffer {
        CaseBuffer { words: vec![f32::NAN.to_bits(); len], purpose: Purpose::F32 }
    }

    /// Scratch memory of zeros that is not checked.
    pub fn scratch(len: usize) -> CaseBuffer {
        CaseBuffer { words: vec![0; len], purpose: Purpose::Input }
    }

    /// The initial content as f32 values.
    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.words)
    }
}

/// Variants of kernels that read or write the cache.
impl KvDtype {
    /// Adds the flag of this data type, and the size of a page, to a variant.
    pub(crate) fn flag(self, variant: Variant) -> Variant {
        let variant = variant.constant_is("KV_PAGE", crate::kv::PAGE as u32);
        match self {
            KvDtype::F16 => variant.flag("KV_F16"),
            KvDtype::F32 => variant,
            KvDtype::Q8 => variant.flag("KV_Q8").constant_is("KV_GROUP", crate::kv::GROUP as u32),
        }
    }

    /// True if a variant is for this data type.
    pub(crate) fn is_of(self, variant: &Variant) -> bool {
        variant.has_flag("KV_F16") == (self == KvDtype::F16) && variant.has_flag("KV_Q8") == (self == KvDtype::Q8)
    }
}

/// All storage formats of weights.
pub(crate) fn all_formats() -> Vec<WeightFormat> {
    let mut formats = vec![WeightFormat::F16, WeightFormat::F32];
    for format in QUANT_FORMATS.iter().filter_map(|format| format.group()).map(WeightFormat::from) {
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    formats
}
