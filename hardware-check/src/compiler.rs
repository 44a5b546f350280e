//! [`Compiler`]: compute pipelines of a Vulkan device that need not exist, with what its compiler tells of them.
//!
//! Mesa's null device has no timeline semaphores, so wgpu does not open it; wgpu-hal does, with the one extension that makes
//! the driver tell (VK_KHR_pipeline_executable_properties).

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char},
    ptr::null_mut,
};

use anyhow::{Context, Result, anyhow};
use ash::{khr, vk};
use infer_core::block_on;
use serde::{Deserialize, Serialize};
use webgpu_kernels::{Kernel, Variant, gpu::Caps, kernel::Access};
use wgpu::hal::{OpenDevice, api::Vulkan, vulkan::CreateDeviceCallback};

use crate::shader::{Shader, SpirvTarget};

/// The name of a variant in every message.
pub fn label(kernel: &Kernel, variant: &Variant) -> String {
    format!("{} {variant}", kernel.name)
}

/// An open device.
pub struct Compiler {
    open: OpenDevice<Vulkan>,
    executables: khr::pipeline_executable_properties::Device,
    target: SpirvTarget,
    /// Lanes that every subgroup is to have; `None` leaves them to the driver, as wgpu does.
    required_lanes: Option<u32>,
}

/// What the driver made of a variant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Compiled {
    /// Lanes of a subgroup.
    pub lanes: u32,
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// As the driver names them.
    pub statistics: BTreeMap<String, f64>,
    #[serde(skip)]
    pub assembly: String,
}

impl Compiled {
    /// A number that the driver gives, 0 where it gives none.
    pub fn statistic(&self, name: &str) -> f64 {
        self.statistics.get(name).copied().unwrap_or(0.0)
    }

    /// Registers that found no place, vector and scalar ones.
    pub fn spills(&self) -> f64 {
        self.statistic("Spilled VGPRs") + self.statistic("Spilled SGPRs")
    }

    /// Bytes of memory that each lane takes for what does not fit registers.
    pub fn scratch(&self) -> f64 {
        self.statistic("Scratch size")
    }
}

impl Compiler {
    /// Opens the Vulkan device of this process that is no software.
    pub fn open(caps: &Caps, required_lanes: Option<u32>) -> Result<Compiler> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::VULKAN,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let is_meant = |adapter: &wgpu::Adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu;
        let adapter = adapters.into_iter().find(is_meant).context("no Vulkan device")?;
        // SAFETY: the adapter is asked to open a device, and is not destroyed.
        let hal = unsafe { adapter.as_hal::<Vulkan>() }.context("not a Vulkan device")?;
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SUBGROUP, caps.subgroups.is_some());
        features.set(wgpu::Features::SHADER_F16, caps.f16);
        features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, caps.cooperative_matrix);
        let mut wanted =
            vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
        let open = {
            let wanted = &mut wanted;
            let callback: Box<CreateDeviceCallback<'_>> = Box::new(move |args| {
                args.extensions.push(khr::pipeline_executable_properties::NAME);
                *args.create_info = std::mem::take(args.create_info).push_next(wanted);
            });
            let (limits, hints) = (wgpu::Limits::default(), wgpu::MemoryHints::MemoryUsage);
            // SAFETY: the features are those that wgpu opens such a device with, and the adapter has them.
            unsafe { hal.open_with_callback(features, &limits, &hints, Some(callback)) }
                .map_err(|e| anyhow!("cannot open the device: {e:?}"))?
        };
        let instance = hal.shared_instance().raw_instance();
        let executables = khr::pipeline_executable_properties::Device::new(instance, open.device.raw_device());
        let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
        let mut dot = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default();
        let mut small = vk::PhysicalDeviceShaderFloat16Int8Features::default();
        let mut all =
            vk::PhysicalDeviceFeatures2::default().push_next(&mut robustness).push_next(&mut dot).push_next(&mut small);
        // SAFETY: the physical device is this instance's.
        unsafe { instance.get_physical_device_features2(hal.raw_physical_device(), &mut all) };
        let target = SpirvTarget {
            robust_buffers: robustness.robust_buffer_access2 != 0,
            integer_dot: dot.shader_integer_dot_product != 0,
            int8: small.shader_int8 != 0,
            ..SpirvTarget::of(caps)
        };
        Ok(Compiler { open, executables, target, required_lanes })
    }

    /// Compiles a variant. The error: who refuses it, and why.
    pub fn compile(&self, kernel: &Kernel, variant: &Variant) -> Result<Compiled, String> {
        let spirv = Shader::parse(kernel, variant)?.spirv(&self.target)?;
        let workgroup = lanes_of_workgroup(&spirv);
        let device = self.open.device.raw_device();
        let said = |e: vk::Result| format!("Vulkan: {e}");
        let info = vk::ShaderModuleCreateInfo::default().code(&spirv);
        // SAFETY: the SPIR-V is valid: naga wrote it from a validated module.
        let module = unsafe { device.create_shader_module(&info, None) }.map_err(said)?;
        let binding = |place: usize, kind| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(place as u32)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let storage = |(i, _): (usize, &Access)| binding(i + 1, vk::DescriptorType::STORAGE_BUFFER);
        let uniform = binding(0, vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC);
        let bindings: Vec<_> =
            std::iter::once(uniform).chain(kernel.bindings.iter().enumerate().map(storage)).collect();
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        // SAFETY: the description is complete.
        let set = unsafe { device.create_descriptor_set_layout(&info, None) }.map_err(said)?;
        let sets = [set];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        // SAFETY: the set is this device's.
        let layout = unsafe { device.create_pipeline_layout(&info, None) }.map_err(said)?;
        let mut required = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default();
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main");
        if let Some(lanes) = self.required_lanes {
            required = required.required_subgroup_size(lanes);
            stage = stage.push_next(&mut required);
        } else if self.target.subgroups {
            stage = stage.flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE);
        }
        let flags = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
            | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
        let info = vk::ComputePipelineCreateInfo::default().flags(flags).stage(stage).layout(layout);
        // SAFETY: module and layout are this device's and agree, as tests of the kernels check.
        let made = unsafe { device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None) };
        let told = made.map_err(|(_, e)| said(e)).and_then(|pipelines| {
            let told = self.told(pipelines[0]).map_err(said);
            // SAFETY: nothing else has it.
            unsafe { device.destroy_pipeline(pipelines[0], None) };
            told
        });
        // SAFETY: nothing else has it.
        unsafe { device.destroy_pipeline_layout(layout, None) };
        // SAFETY: nothing else has it.
        unsafe { device.destroy_descriptor_set_layout(set, None) };
        // SAFETY: nothing else has it.
        unsafe { device.destroy_shader_module(module, None) };
        told.map(|told| Compiled { workgroup, ..told })
    }

    /// What the driver tells of a pipeline.
    fn told(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline is this device's.
        let properties = unsafe { self.executables.get_pipeline_executable_properties(&of) }?;
        let lanes = properties.first().map_or(0, |executable| executable.subgroup_size);
        let mut compiled = Compiled { lanes, ..Compiled::default() };
        let of = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: the pipeline was made with statistics.
        for statistic in unsafe { self.executables.get_pipeline_executable_statistics(&of) }? {
            use vk::PipelineExecutableStatisticFormatKHR as Format;
            // SAFETY: every pattern of 8 bytes is a number.
            let bits = unsafe { statistic.value.u64 };
            let value = match statistic.format {
                Format::BOOL32 => f64::from(bits as u32),
                Format::INT64 => bits as i64 as f64,
                Format::UINT64 => bits as f64,
                _ => f64::from_bits(bits),
            };
            compiled.statistics.insert(text(&statistic.name), value);
        }
        compiled.assembly = self.assembly(&of)?;
        Ok(compiled)
    }

    /// Its last internal representation: ash has no wrapper for these.
    fn assembly(&self, of: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String, vk::Result> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.open.device.raw_device().handle();
        let mut count = 0;
        // SAFETY: asked without memory, the driver says how many there are.
        unsafe { get(device, of, &mut count, null_mut()) }.result()?;
        let mut all = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
        // SAFETY: asked without memory for their texts, it says how long they are.
        unsafe { get(device, of, &mut count, all.as_mut_ptr()) }.result()?;
        let mut texts: Vec<Vec<u8>> = all.iter().map(|one| vec![0; one.data_size]).collect();
        all.iter_mut().zip(&mut texts).for_each(|(one, text)| one.p_data = text.as_mut_ptr().cast());
        // SAFETY: each has memory of the length that it asked for.
        unsafe { get(device, of, &mut count, all.as_mut_ptr()) }.result()?;
        let assembly = all.iter().zip(&texts).find(|(one, _)| text(&one.name).contains("ssembly"));
        Ok(assembly.map_or(String::new(), |(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').into()))
    }
}

fn text(chars: &[c_char]) -> String {
    // SAFETY: Vulkan's texts end with a zero.
    unsafe { CStr::from_ptr(chars.as_ptr()) }.to_string_lossy().into_owned()
}

/// Lanes of a workgroup, by the instruction `OpExecutionMode LocalSize`.
fn lanes_of_workgroup(spirv: &[u32]) -> u32 {
    const HEADER: usize = 5;
    let (execution_mode, local_size) = (16, 17);
    let mut at = HEADER;
    while at < spirv.len() {
        let (words, operation) = ((spirv[at] >> 16) as usize, spirv[at] & 0xffff);
        if operation == execution_mode && spirv[at + 2] == local_size {
            return spirv[at + 3..at + 6].iter().product();
        }
        at += words.max(1);
    }
    0
}
