//! [`Compiler`]: compiles compute pipelines on Mesa's null device and reads the compiler's statistics and assembly.
//!
//! The null device has no timeline semaphores, so wgpu does not open it. We open it through wgpu-hal, with the
//! extension that reports statistics (VK_KHR_pipeline_executable_properties).

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

/// The name of a variant in messages.
pub fn label(kernel: &Kernel, variant: &Variant) -> String {
    format!("{} {variant}", kernel.name)
}

/// An open device.
pub struct Compiler {
    open: OpenDevice<Vulkan>,
    executables: khr::pipeline_executable_properties::Device,
    target: SpirvTarget,
    /// Required subgroup size. `None`: the driver chooses, as with wgpu.
    required_lanes: Option<u32>,
}

/// A compiled variant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Compiled {
    /// Lanes of a subgroup.
    pub lanes: u32,
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// Statistics by the driver's names.
    pub statistics: BTreeMap<String, f64>,
    #[serde(skip)]
    pub assembly: String,
}

impl Compiled {
    /// A statistic, or 0 if the driver does not report it.
    pub fn statistic(&self, name: &str) -> f64 {
        self.statistics.get(name).copied().unwrap_or(0.0)
    }

    /// Number of spilled vector and scalar registers.
    pub fn spills(&self) -> f64 {
        self.statistic("Spilled VGPRs") + self.statistic("Spilled SGPRs")
    }

    /// Scratch memory of the variant, in bytes.
    pub fn scratch(&self) -> f64 {
        self.statistic("Scratch size")
    }
}

impl Compiler {
    /// Opens the process's Vulkan device, ignoring software devices.
    pub fn open(caps: &Caps, required_lanes: Option<u32>) -> Result<Compiler> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::VULKAN,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let is_meant = |adapter: &wgpu::Adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu;
        let adapter = adapters.into_iter().find(is_meant).context("no Vulkan device")?;
        // SAFETY: we only open a device with the adapter and do not destroy it.
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
            // SAFETY: the adapter has these features; wgpu would open the device with the same.
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
        // SAFETY: the physical device belongs to this instance.
        unsafe { instance.get_physical_device_features2(hal.raw_physical_device(), &mut all) };
        let target = SpirvTarget {
            robust_buffers: robustness.robust_buffer_access2 != 0,
            integer_dot: dot.shader_integer_dot_product != 0,
            int8: small.shader_int8 != 0,
            ..SpirvTarget::of(caps)
        };
        Ok(Compiler { open, executables, target, required_lanes })
    }

    /// Compiles a variant. The error names the rejecting compiler stage and its reason.
    pub fn compile(&self, kernel: &Kernel, variant: &Variant) -> Result<Compiled, String> {
        let spirv = Shader::parse(kernel, variant)?.spirv(&self.target)?;
        let workgroup = lanes_of_workgroup(&spirv);
        let device = self.open.device.raw_device();
        let describe = |e: vk::Result| format!("Vulkan: {e}");
        let info = vk::ShaderModuleCreateInfo::default().code(&spirv);
        // SAFETY: the SPIR-V is valid: naga wrote it from a validated module.
        let module = unsafe { device.create_shader_module(&info, None) }.map_err(describe)?;
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
        let set = unsafe { device.create_descriptor_set_layout(&info, None) }.map_err(describe)?;
        let sets = [set];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        // SAFETY: the set belongs to this device.
        let layout = unsafe { device.create_pipeline_layout(&info, None) }.map_err(describe)?;
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
        // SAFETY: module and layout belong to this device and match; tests of the kernels check this.
        let pipelines = unsafe { device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None) };
        let compiled = pipelines.map_err(|(_, e)| describe(e)).and_then(|pipelines| {
            let compiled = self.statistics(pipelines[0]).map_err(describe);
            // SAFETY: nothing else uses it.
            unsafe { device.destroy_pipeline(pipelines[0], None) };
            compiled
        });
        // SAFETY: nothing else uses it.
        unsafe { device.destroy_pipeline_layout(layout, None) };
        // SAFETY: nothing else uses it.
        unsafe { device.destroy_descriptor_set_layout(set, None) };
        // SAFETY: nothing else uses it.
        unsafe { device.destroy_shader_module(module, None) };
        compiled.map(|compiled| Compiled { workgroup, ..compiled })
    }

    /// Statistics and assembly of a pipeline.
    fn statistics(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline belongs to this device.
        let properties = unsafe { self.executables.get_pipeline_executable_properties(&of) }?;
        let lanes = properties.first().map_or(0, |executable| executable.subgroup_size);
        let mut compiled = Compiled { lanes, ..Compiled::default() };
        let of = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: the pipeline was created with CAPTURE_STATISTICS.
        for statistic in unsafe { self.executables.get_pipeline_executable_statistics(&of) }? {
            use vk::PipelineExecutableStatisticFormatKHR as Format;
            // SAFETY: every 8-byte pattern is a valid u64.
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

    /// The final assembly, which is one of the pipeline's internal representations. ash has no wrapper for these.
    fn assembly(&self, of: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String, vk::Result> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.open.device.raw_device().handle();
        let mut count = 0;
        // SAFETY: with a null pointer, the driver returns only the count.
        unsafe { get(device, of, &mut count, null_mut()) }.result()?;
        let mut all = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
        // SAFETY: the driver writes at most `count` structures. With null text pointers, it returns the text lengths.
        unsafe { get(device, of, &mut count, all.as_mut_ptr()) }.result()?;
        let mut texts: Vec<Vec<u8>> = all.iter().map(|one| vec![0; one.data_size]).collect();
        all.iter_mut().zip(&mut texts).for_each(|(one, text)| one.p_data = text.as_mut_ptr().cast());
        // SAFETY: each text has memory of its reported length.
        unsafe { get(device, of, &mut count, all.as_mut_ptr()) }.result()?;
        let assembly = all.iter().zip(&texts).find(|(one, _)| text(&one.name).contains("ssembly"));
        Ok(assembly.map_or(String::new(), |(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').into()))
    }
}

fn text(chars: &[c_char]) -> String {
    // SAFETY: Vulkan's texts are zero-terminated.
    unsafe { CStr::from_ptr(chars.as_ptr()) }.to_string_lossy().into_owned()
}

/// The workgroup size, from the instruction `OpExecutionMode LocalSize`.
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
