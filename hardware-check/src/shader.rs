//! [`Shader`]: translates a kernel variant to SPIR-V, HLSL and MSL with the options of wgpu-hal 30.

use naga::{
    Module, ResourceBinding, ShaderStage,
    back::{hlsl, msl, spv},
    proc::{BoundsCheckPolicies, BoundsCheckPolicy},
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};
use webgpu_kernels::{Kernel, Variant, gpu::Caps, kernel::Access};

/// A variant, parsed and validated.
pub struct Shader<'a> {
    kernel: &'a Kernel,
    module: Module,
    info: ModuleInfo,
}

/// Properties of a Vulkan device that affect the SPIR-V.
pub struct SpirvTarget {
    pub version: (u8, u8),
    pub subgroups: bool,
    pub f16: bool,
    pub cooperative_matrix: bool,
    pub robust_buffers: bool,
    pub integer_dot: bool,
    pub int8: bool,
}

impl SpirvTarget {
    /// A Vulkan 1.3 target with the capabilities in `caps`.
    pub fn of(caps: &Caps) -> SpirvTarget {
        SpirvTarget {
            version: (1, 6),
            subgroups: caps.subgroups.is_some(),
            f16: caps.f16,
            cooperative_matrix: caps.cooperative_matrix,
            robust_buffers: true,
            integer_dot: true,
            int8: true,
        }
    }
}

impl Shader<'_> {
    pub fn parse<'a>(kernel: &'a Kernel, variant: &Variant) -> Result<Shader<'a>, String> {
        let source = kernel.source(variant);
        let module = naga::front::wgsl::parse_str(&source).map_err(|e| e.emit_to_string(&source))?;
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module).map_err(|e| e.emit_to_string(&source))?;
        Ok(Shader { kernel, module, info })
    }

    /// Each binding with its access. The first is the uniform, which is read-only.
    fn bindings(&self) -> impl Iterator<Item = (ResourceBinding, Access)> {
        let storage = self.kernel.bindings.iter().copied();
        let all = std::iter::once(Access::Read).chain(storage).enumerate();
        all.map(|(binding, access)| (ResourceBinding { group: 0, binding: binding as u32 }, access))
    }

    pub fn spirv(&self, target: &SpirvTarget) -> Result<Vec<u32>, String> {
        use spv::Capability as C;
        let optional: [(bool, &[C]); 5] = [
            (
                target.subgroups,
                &[
                    C::GroupNonUniform,
                    C::GroupNonUniformVote,
                    C::GroupNonUniformArithmetic,
                    C::GroupNonUniformBallot,
                    C::GroupNonUniformShuffle,
                    C::GroupNonUniformShuffleRelative,
                    C::GroupNonUniformQuad,
                ],
            ),
            (target.f16, &[C::Float16]),
            (target.cooperative_matrix, &[C::CooperativeMatrixKHR, C::VulkanMemoryModel]),
            (
                target.integer_dot,
                &[
                    C::DotProductInputAllKHR,
                    C::DotProductInput4x8BitKHR,
                    C::DotProductInput4x8BitPackedKHR,
                    C::DotProductKHR,
                ],
            ),
            (target.int8, &[C::Int8]),
        ];
        let always = [C::Shader, C::Matrix, C::Sampled1D, C::Image1D, C::ImageQuery, C::DerivativeControl];
        let has = optional.iter().filter(|(has, _)| *has).flat_map(|(_, capabilities)| *capabilities);
        let buffer = if target.robust_buffers { BoundsCheckPolicy::Unchecked } else { BoundsCheckPolicy::Restrict };
        let place = |(resource, _): (ResourceBinding, Access)| {
            let place = spv::BindingInfo { descriptor_set: 0, binding: resource.binding, binding_array_size: None };
            (resource, place)
        };
        let options = spv::Options {
            lang_version: target.version,
            flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
            capabilities: Some(always.iter().chain(has).copied().collect()),
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer,
                image_load: BoundsCheckPolicy::Unchecked,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            // As in webgpu-kernels/src/gpu/pipeline.rs for hardware devices.
            force_loop_bounding: false,
            use_storage_input_output_16: false,
            fake_missing_bindings: false,
            binding_map: self.bindings().map(place).collect(),
            ..Default::default()
        };
        let pipeline = spv::PipelineOptions { entry_point: "main".into(), shader_stage: ShaderStage::Compute };
        spv::write_vec(&self.module, &self.info, &options, Some(&pipeline)).map_err(|e| e.to_string())
    }

    /// HLSL of shader model 6.5, and the name of its entry point.
    pub fn hlsl(&self) -> Result<(String, String), String> {
        // The uniform is a root descriptor. Read-only and read-write buffers have separate register numbers.
        let mut registers = [0, 0];
        let place = |(resource, access): (ResourceBinding, Access)| {
            let register = match resource.binding {
                0 => 0,
                _ => {
                    let next = &mut registers[usize::from(access == Access::ReadWrite)];
                    *next += 1;
                    *next - 1
                }
            };
            (resource, hlsl::BindTarget { register, ..Default::default() })
        };
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_5,
            binding_map: self.bindings().map(place).collect(),
            fake_missing_bindings: false,
            special_constants_binding: Some(hlsl::BindTarget { register: 1, ..Default::default() }),
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, "main".into())) };
        let mut text = String::new();
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        let written = writer.write(&self.module, &self.info, None).map_err(|e| format!("HLSL: {e}"))?;
        let name = written.entry_point_names.into_iter().next().ok_or("HLSL: no entry point")?;
        Ok((text, name.map_err(|e| format!("HLSL: {e}"))?))
    }

    /// MSL 3.1.
    pub fn msl(&self) -> Result<String, String> {
        let place = |(resource, access): (ResourceBinding, Access)| {
            let buffer = Some(resource.binding as u8);
            (resource, msl::BindTarget { buffer, mutable: access == Access::ReadWrite, ..Default::default() })
        };
        let resources = msl::EntryPointResources {
            resources: self.bindings().map(place).collect(),
            sizes_buffer: Some(self.kernel.bindings.len() as u8 + 1),
            ..Default::default()
        };
        let options = msl::Options {
            lang_version: (3, 1),
            per_entry_point_map: [("main".to_string(), resources)].into(),
            fake_missing_bindings: false,
            spirv_cross_compatibility: false,
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer: BoundsCheckPolicy::Restrict,
                image_load: BoundsCheckPolicy::Restrict,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let pipeline = msl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, "main".into())),
            vertex_pulling_transform: true,
            ..Default::default()
        };
        let written = msl::write_string(&self.module, &self.info, &options, &pipeline);
        let (text, info) = written.map_err(|e| format!("MSL: {e}"))?;
        match info.entry_point_names.into_iter().next() {
            Some(Ok(_)) => Ok(text),
            Some(Err(e)) => Err(format!("MSL: {e}")),
            None => Err("MSL: no entry point".into()),
        }
    }
}
