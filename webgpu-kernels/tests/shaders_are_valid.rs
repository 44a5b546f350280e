//! Checks without a GPU that every variant of any case parses and validates, agrees with its Rust side, and translates to HLSL and MSL.

use std::collections::BTreeSet;

use naga::{
    AddressSpace, Module, ScalarKind, StorageAccess, TypeInner,
    back::{hlsl, msl},
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};
use webgpu_kernels::{
    CaseSet, KERNELS, Kernel, Variant,
    gpu::{Caps, SubgroupSizes},
    kernel::Access,
};

fn subgroups(min: u32, max: u32) -> Caps {
    Caps { subgroups: Some(SubgroupSizes { min, max }), ..Caps::WEBGPU_DEFAULTS }
}

/// The variants of all cases, for devices with all capabilities and for devices with none.
fn variants(kernel: &Kernel) -> Vec<Variant> {
    let software = Caps { is_software: true, ..subgroups(8, 8) };
    let chains = Caps { max_bindings: 32, ..subgroups(8, 8) };
    let clustered_chains = Caps { max_bindings: 32, ..subgroups(32, 64) };
    let cooperative = Caps { max_bindings: 32, f16: true, cooperative_matrix: true, ..subgroups(32, 32) };
    let rdna3 = Caps { subgroups: Some(SubgroupSizes { min: 64, max: 64 }), registers: Some(255), ..cooperative };
    let few_registers = Caps { registers: Some(128), ..subgroups(8, 32) };
    let devices = [
        Caps::WEBGPU_DEFAULTS,
        subgroups(4, 4),
        subgroups(32, 32),
        subgroups(64, 64),
        subgroups(8, 128),
        few_registers,
        software,
        chains,
        clustered_chains,
        cooperative,
        rdna3,
    ];
    variants_of(kernel, &devices)
}

fn variants_of(kernel: &Kernel, devices: &[Caps]) -> Vec<Variant> {
    let sets = [CaseSet::Test, CaseSet::Bench];
    let mut seen = BTreeSet::new();
    let cases = devices.iter().flat_map(|caps| sets.map(|set| (kernel.cases)(caps, set))).flatten();
    cases.map(|case| case.variant).filter(|variant| seen.insert(variant.to_string())).collect()
}

/// Parses and validates with WebGPU's capabilities. Adds those of subgroups and matrix units if the variant has them.
fn module(kernel: &Kernel, variant: &Variant) -> (Module, ModuleInfo) {
    let source = kernel.source(variant);
    let place = format!("{} {variant}", kernel.name);
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{place}: {}", e.emit_to_string(&source)));
    // Naga's name for pack2x16float and unpack2x16float, which are in WebGPU.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if variant.has_flag("SUBGROUPS") {
        capabilities |= Capabilities::SUBGROUP;
    }
    if variant.has_flag("COOPERATIVE") {
        capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    }
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{place}: {}", e.emit_to_string(&source)));
    (module, info)
}

#[test]
fn every_variant_validates_and_agrees_with_its_wrapper() {
    for kernel in KERNELS {
        let variants = variants(kernel);
        assert!(!variants.is_empty(), "{}: no case", kernel.name);
        for variant in &variants {
            let place = format!("{} {variant}", kernel.name);
            let (module, _) = module(kernel, variant);
            check_bindings(&place, kernel, &module);
            check_params(&place, kernel, &module);
            // With matrix units the limit is three times the default: see open.rs.
            check_limits(&place, &module, if variant.has_flag("COOPERATIVE") { 49_152 } else { 16_384 });
        }
    }
}

/// Checks naga's HLSL against three bugs of naga 30. Microsoft's compiler rejects two of them: subgroup builtins in a struct have no
/// semantics, and a product of packed bytes adds a 64-bit zero. The third one would give wrong results: in a struct, the number of workgroups
/// gets the id of the workgroup.
#[test]
fn direct3d_gets_arguments_with_semantics_and_no_packed_products() {
    let direct3d = |caps| Caps { packed_dot: false, ..caps };
    let devices = [
        Caps::WEBGPU_DEFAULTS,
        subgroups(4, 128),
        subgroups(8, 32),
        subgroups(32, 32),
        subgroups(32, 64),
        subgroups(64, 64),
        Caps { registers: Some(128), max_bindings: 32, ..subgroups(16, 32) },
    ];
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_7,
        special_constants_binding: Some(hlsl::BindTarget { space: 255, ..Default::default() }),
        ..Default::default()
    };
    let mut with_subgroups = 0;
    for kernel in KERNELS {
        for variant in variants_of(kernel, &devices.map(direct3d)) {
            let place = format!("{} {variant}", kernel.name);
            let (module, info) = module(kernel, &variant);
            let mut text = String::new();
            let pipeline = hlsl::PipelineOptions::default();
            let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None);
            written.unwrap_or_else(|error| panic!("{place}: {error}"));
            assert!(!text.contains("dot4add_"), "{place}: a product of packed bytes");
            assert!(text.contains("uint3(_NagaConstants.first_vertex"), "{place}: the number of workgroups");
            check_semantics(&place, &text);
            if variant.has_flag("SUBGROUPS") {
                assert!(text.contains("= WaveGetLaneIndex();"), "{place}: no number of the lane");
                assert!(text.contains("/ WaveGetLaneCount();"), "{place}: no number of the subgroup");
                with_subgroups += 1;
            }
        }
    }
    assert!(with_subgroups > 50, "{with_subgroups} variants with subgroups");
}

/// Every argument of `main` has a semantic, or is a struct whose members all have one.
fn check_semantics(place: &str, text: &str) {
    let (_, arguments) = text.split_once("void main(").unwrap_or_else(|| panic!("{place}: no main"));
    let (arguments, _) = arguments.split_once(')').expect("a list of arguments ends");
    for argument in arguments.split(',').filter(|argument| !argument.contains(" : SV_")) {
        let kind = argument.split_whitespace().next().expect("an argument has a type");
        let (_, members) =
            text.split_once(&format!("struct {kind} {{")).unwrap_or_else(|| panic!("{place}: {argument}"));
        let (members, _) = members.split_once('}').expect("a struct ends");
        for member in members.lines().map(str::trim).filter(|member| !member.is_empty()) {
            assert!(member.contains(" : SV_"), "{place}: `{member}` has no semantic");
        }
    }
}

/// Naga writes MSL for all variants except those of matrix units, whose size Metal does not have.
#[test]
fn every_variant_translates_to_msl() {
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let mut count = 0;
    for kernel in KERNELS {
        for variant in variants(kernel).iter().filter(|variant| !variant.has_flag("COOPERATIVE")) {
            let (module, info) = module(kernel, variant);
            let written = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default());
            let (text, _) = written.unwrap_or_else(|error| panic!("{} {variant}: {error}", kernel.name));
            assert!(text.contains("kernel void main_("), "{} {variant}: no kernel", kernel.name);
            count += 1;
        }
    }
    assert!(count > 200, "{count} variants");
}

/// `@binding(0)` is the uniform, and `@binding(1..)` are the storage buffers of `Kernel::bindings`.
fn check_bindings(place: &str, kernel: &Kernel, module: &Module) {
    let mut found: Vec<(u32, Option<Access>)> = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        assert_eq!(binding.group, 0, "{place}: {:?} is not in group 0", variable.name);
        let access = match variable.space {
            AddressSpace::Uniform => None,
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Some(Access::ReadWrite),
            AddressSpace::Storage { .. } => Some(Access::Read),
            other => panic!("{place}: {:?} is in {other:?}", variable.name),
        };
        found.push((binding.binding, access));
    }
    found.sort_by_key(|(binding, _)| *binding);
    let mut expected = vec![(0, None)];
    expected.extend(kernel.bindings.iter().zip(1..).map(|(access, binding)| (binding, Some(*access))));
    assert_eq!(found, expected, "{place}: bindings");
    let on_any_device = !(kernel.cases)(&Caps::WEBGPU_DEFAULTS, CaseSet::Test).is_empty();
    let fits = kernel.bindings.len() <= wgpu_default_storage_buffers();
    assert!(fits || !on_any_device, "{place}: too many storage buffers");
}

fn wgpu_default_storage_buffers() -> usize {
    8
}

/// The uniform has the same fields at the same offsets in both languages, and the same size.
fn check_params(place: &str, kernel: &Kernel, module: &Module) {
    let (_, uniform) = module
        .global_variables
        .iter()
        .find(|(_, variable)| variable.space == AddressSpace::Uniform)
        .unwrap_or_else(|| panic!("{place}: no uniform"));
    let TypeInner::Struct { members, span } = &module.types[uniform.ty].inner else {
        panic!("{place}: the uniform is not a struct")
    };
    for member in members {
        let is_word = matches!(&module.types[member.ty].inner,
            TypeInner::Scalar(s) if s.width == 4 && matches!(s.kind, ScalarKind::Uint | ScalarKind::Float));
        assert!(is_word, "{place}: {:?} is neither u32 nor f32", member.name);
    }
    let found: Vec<(&str, usize)> =
        members.iter().map(|member| (member.name.as_deref().unwrap_or(""), member.offset as usize)).collect();
    assert_eq!(found, kernel.params.fields, "{place}: fields of the parameters");
    assert_eq!(*span as usize, kernel.params.size, "{place}: size of the parameters");
}

/// Workgroups and their memory fit WebGPU's default limits.
fn check_limits(place: &str, module: &Module, most_memory: u32) {
    let [entry] = module.entry_points.as_slice() else { panic!("{place}: not one entry point") };
    let [x, y, z] = entry.workgroup_size;
    assert!(x * y * z <= 256 && x <= 256 && y <= 256 && z <= 64, "{place}: workgroup of {x} x {y} x {z}");
    let memory: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        .map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx()).next_multiple_of(16))
        .sum();
    assert!(memory <= most_memory, "{place}: {memory} bytes of workgroup memory");
}
