//! Checks a model's kernels against their references on the device that will run the model.
//!
//! Drivers have bugs, and a kernel that a driver miscompiles gives fluent nonsense. [`run`] is called when a model is loaded.
//! It switches wrong variants off ([`Gpu::switch_off`]), and other kernels replace them. It uses the smallest test case of each
//! variant. For kernels whose variants depend on a model's widths it makes small cases of these widths.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use model_format::decoder_config::Activation;

use crate::{
    Case, CaseSet, Error, Gpu, KERNELS, Kernel, KvDtype, Result, Variant, WeightFormat,
    attention::{self, AttentionShape},
    case_check::{Outcome, check_divided},
    gemm::{Cooperative, Few, LaneRows, Narrow},
    gemv,
    kernel::Usage,
    tuning::{PRESETS_FLAG, checks_of},
};

/// The properties of a model that its kernels' variants depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Format and inputs of each kind of weight matrix.
    pub matrices: Vec<(WeightFormat, usize)>,
    /// Attention of each kind of layer.
    pub attention: Vec<AttentionShape>,
    /// Data type of the KV cache.
    pub kv: KvDtype,
    /// Activation of the gate.
    pub activation: Activation,
    /// True if queries and keys are normed.
    pub norm_heads: bool,
    /// True if logits are capped.
    pub soft_cap: bool,
    /// The planned kernels of [`Usage::Model`] with their variants. If it is empty, every variant that could run is checked.
    pub variants: Vec<(&'static str, Variant)>,
    /// The largest number of rows per run that a variant depends on.
    pub most_rows: usize,
}

/// A kernel that is switched off, or used without one of its flags.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Switch {
    /// Name of the kernel.
    pub kernel: String,
    /// The flag that its variants go without. `None`: the kernel is not used.
    pub flag: Option<String>,
}

impl std::fmt::Display for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.flag {
            Some(flag) => write!(f, "{} with {}", self.kernel, flag.to_lowercase()),
            None => f.write_str(&self.kernel),
        }
    }
}

/// Flags that a variant can go without: it computes the same.
const OPTIONAL_FLAGS: [&str; 1] = ["SUBGROUPS"];

/// The outcome of one case.
pub struct Line {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// The variant.
    pub variant: Variant,
    /// The shape.
    pub label: String,
    /// Its error, or the reason why it is wrong.
    pub outcome: Outcome,
}

/// Checks the kernels of `workload` and switches wrong ones off. Returns all switches of the device and the number of cases.
///
/// Errors: [`Error::WrongKernel`] if a wrong kernel has no substitute; errors of the device.
pub async fn run(gpu: &Gpu, workload: &Workload) -> Result<(Vec<Switch>, usize)> {
    let mut count = 0;
    let switches = run_with(gpu, workload, async |cases| {
        count += cases.len();
        check_divided(gpu, cases, &mut |_| {}).await
    });
    Ok((switches.await?, count))
}

async fn run_with(
    gpu: &Gpu,
    workload: &Workload,
    mut check: impl AsyncFnMut(&[Arc<Case>]) -> Result<Vec<Outcome>>,
) -> Result<Vec<Switch>> {
    let mut passed: Vec<(&'static str, Variant)> = Vec::new();
    loop {
        let mut left: Vec<Left> = Vec::new();
        let of_presets = gpu.presets().into_iter().flat_map(|(problem, choice)| {
            let (kernel, cases) = checks_of(gpu.caps(), &problem, choice);
            cases.into_iter().map(move |case| (kernel, case, Some(problem.tunable.name)))
        });
        for (kernel, case, choice) in cases_of(gpu, workload).into_iter().map(|(k, c)| (k, c, None)).chain(of_presets) {
            let key = (kernel.name, gpu.allowed(kernel.name, &case.variant).into_owned());
            if !passed.contains(&key) && !left.iter().any(|other| other.key == key) {
                left.push(Left { kernel, key, case: Arc::new(case), choice });
            }
        }
        let outcomes = check(&left.iter().map(|left| left.case.clone()).collect::<Vec<_>>()).await?;
        gpu.shared.forgive();
        let mut is_all_right = true;
        for (Left { kernel, key: (name, variant), choice, .. }, outcome) in left.into_iter().zip(outcomes) {
            let Err(reason) = outcome else {
                passed.push((name, variant));
                continue;
            };
            is_all_right = false;
            if let Some(name) = choice {
                // Without presets the kernel's own rule applies.
                gpu.switch_off(Switch { kernel: name.into(), flag: Some(PRESETS_FLAG.into()) });
                continue;
            }
            let flag = OPTIONAL_FLAGS.iter().find(|flag| variant.has_flag(flag));
            if flag.is_none() && !kernel.has_substitute {
                let (kernel, variant) = (name.into(), variant.to_string());
                return Err(Error::WrongKernel { kernel, variant, adapter: gpu.summary().name.clone(), reason });
            }
            let switch = Switch { kernel: name.into(), flag: flag.map(|flag| flag.to_string()) };
            if !gpu.switched_off().contains(&switch) {
                gpu.switch_off(switch);
            }
        }
        if is_all_right {
            return Ok(gpu.switched_off());
        }
        // Check the substitutes in the next round.
    }
}

/// A case to run.
struct Left {
    kernel: &'static Kernel,
    /// Name of the kernel, and variant.
    key: (&'static str, Variant),
    case: Arc<Case>,
    /// Name of the tunable whose preset the case checks.
    choice: Option<&'static str>,
}

/// Checks every variant of every kernel in its smallest test case. Switches nothing off. `done` gets the number of finished cases
/// and of all.
pub async fn run_all(gpu: &Gpu, mut done: impl FnMut(usize, usize)) -> Result<Vec<Line>> {
    let all: Vec<_> = KERNELS
        .iter()
        .flat_map(|kernel| smallest_cases(gpu, kernel).map(move |case| (kernel, Arc::new(case))))
        .collect();
    let cases: Vec<Arc<Case>> = all.iter().map(|(_, case)| case.clone()).collect();
    let outcomes = check_divided(gpu, &cases, &mut |count| done(count, all.len())).await?;
    gpu.shared.forgive();
    let line = |((kernel, case), outcome): (&(&&Kernel, Arc<Case>), Outcome)| Line {
        kernel: kernel.name,
        variant: case.variant.clone(),
        label: case.label.clone(),
        outcome,
    };
    Ok(all.iter().zip(outcomes).map(line).collect())
}

/// A hash of the device, its driver, the kernels and the workload.
pub fn key(gpu: &Gpu, workload: &Workload) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Variants follow from the other fields and from choices, and candidates of choices are checked when they are measured.
    let workload = Workload { variants: Vec::new(), ..workload.clone() };
    (device_key(gpu), format!("{workload:?}"), format!("{:?}", gpu.presets())).hash(&mut hasher);
    hasher.finish()
}

/// A hash of the device, its driver and the kernels.
pub fn device_key(gpu: &Gpu) -> u64 {
    let mut hasher = DefaultHasher::new();
    let summary = gpu.summary();
    (&summary.name, &summary.backend, &summary.driver, format!("{:?}", summary.caps)).hash(&mut hasher);
    for kernel in KERNELS {
        (kernel.name, kernel.wgsl).hash(&mut hasher);
    }
    crate::source::hash_shared(&mut hasher);
    hasher.finish()
}

/// The smallest test case of each variant of a kernel on a device.
pub fn smallest_cases(gpu: &Gpu, kernel: &Kernel) -> impl Iterator<Item = Case> + use<> {
    let mut cases: Vec<Case> = Vec::new();
    for case in (kernel.cases)(gpu.caps(), CaseSet::Test) {
        match cases.iter_mut().find(|found| found.variant == case.variant) {
            Some(found) if found.bytes + found.flops > case.bytes + case.flops => *found = case,
            Some(_) => {}
            None => cases.push(case),
        }
    }
    cases.into_iter()
}

/// The cases of all kernels and variants that a model can run on this device.
fn cases_of(gpu: &Gpu, workload: &Workload) -> Vec<(&'static Kernel, Case)> {
    let caps = gpu.caps();
    let has_ragged = workload.matrices.iter().any(|(_, cols)| !cols.is_multiple_of(4));
    let in_lane_rows = LaneRows::supports(caps) && !gpu.is_off(LaneRows::NAME);
    let is_used = |kernel: &Kernel, variant: &Variant| {
        let weights = variant.weights.is_none_or(|format| workload.matrices.iter().any(|(of, _)| *of == format));
        let fits = match kernel.name {
            name if kernel.usage == Usage::Offline || gpu.is_off(name) => false,
            name if name == LaneRows::NAME => in_lane_rows,
            "gemm" => !in_lane_rows,
            Cooperative::NAME | Narrow::NAME | Few::NAME => {
                Cooperative::supports_device(caps) && !gpu.is_off(Cooperative::NAME)
            }
            "norm_heads" => workload.norm_heads,
            "soft_cap" => workload.soft_cap,
            "glu" => variant.has_flag("GELU") == (workload.activation == Activation::GeluTanh),
            "rope" => workload.kv.is_of(variant),
            // Variants of these depend on the model's widths: see below.
            name => !name.starts_with("gemv") && !name.starts_with("attention"),
        };
        fits && weights && (has_ragged || !variant.has_flag("RAGGED"))
    };
    let mut cases = Vec::new();
    for kernel in KERNELS {
        cases.extend(
            smallest_cases(gpu, kernel).filter(|case| is_used(kernel, &case.variant)).map(|case| (*kernel, case)),
        );
    }
    if !in_lane_rows {
        for (format, cols) in &workload.matrices {
            let all = gemv::cases_of(caps, *format, *cols);
            cases.extend(all.into_iter().filter(|(kernel, _)| !gpu.is_off(kernel.name)));
            for shape in &workload.attention {
                if gemv::GemvRope::supports(shape.head_dim, shape.head_dim, workload.kv)
                    && !gpu.is_off(gemv::ROPE_KERNEL.name)
                {
                    let case = gemv::turned_case_of(caps, *format, *cols, shape.head_dim, workload.kv);
                    cases.push((&gemv::ROPE_KERNEL, case));
                }
            }
        }
    }
    for shape in &workload.attention {
        let all = attention::cases_of(caps, *shape, workload.kv);
        cases.extend(all.into_iter().filter(|(kernel, _)| !gpu.is_off(kernel.name)));
    }
    // A plan does not list the substitutes of kernels that are off.
    if !workload.variants.is_empty() && gpu.switched_off().is_empty() {
        cases.retain(|(kernel, case)| {
            kernel.usage == Usage::Answer
                || workload.variants.iter().any(|(name, variant)| *name == kernel.name && *variant == case.variant)
        });
    }
    cases
}

/// The variants of `workload` that no case checks.
pub fn unchecked<'a>(gpu: &Gpu, workload: &'a Workload) -> Vec<&'a (&'static str, Variant)> {
    let cases = cases_of(gpu, workload);
    let is_checked = |name: &str, variant: &Variant| {
        let found = |(kernel, case): &(&Kernel, Case)| kernel.name == name && case.variant == *variant;
        cases.iter().any(found)
    };
    workload.variants.iter().filter(|(name, variant)| !is_checked(name, variant)).collect()
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::gpu::{OpenOptions, block_on, for_test};

    fn workload() -> Workload {
        let q4 = WeightFormat::Group { bits: 4, group_size: 32 };
        let attention = AttentionShape {
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            rotary_dim: 64,
            scale: 0.125,
            soft_cap: None,
            window: None,
        };
        Workload {
            matrices: vec![(q4, 576), (q4, 1536)],
            attention: vec![attention],
            kv: KvDtype::F16,
            activation: Activation::Silu,
            norm_heads: false,
            soft_cap: false,
            variants: Vec::new(),
            most_rows: 512,
        }
    }

    /// The first adapter, opened with each profile. Without an adapter the test is skipped with the reason.
    fn devices() -> Vec<Gpu> {
        OpenOptions::PROFILES.into_iter().filter_map(|(_, options)| for_test(options)).collect()
    }

    #[test]
    fn correct_kernels_stay_on() {
        for gpu in devices() {
            assert_eq!(block_on(run(&gpu, &workload())).unwrap().0, []);
        }
    }

    /// Runs the self-test with a wrong outcome wherever `is_wrong(kernel, variant)`.
    fn run_wrong(gpu: &Gpu, is_wrong: impl Fn(&str, &Variant) -> bool) -> Result<Vec<Switch>> {
        let kernel_of = |case: &Case| {
            let all = cases_of(gpu, &workload());
            let found = all.iter().find(|(_, of)| (&of.label, &of.variant) == (&case.label, &case.variant));
            found.expect("one of the cases").0.name
        };
        block_on(run_with(gpu, &workload(), async |cases| {
            let mut outcomes = check_divided(gpu, cases, &mut |_| {}).await?;
            for (case, outcome) in cases.iter().zip(&mut outcomes) {
                let kernel = kernel_of(case);
                if is_wrong(kernel, &gpu.allowed(kernel, &case.variant)) {
                    *outcome = Err("wrong".into());
                }
            }
            Ok(outcomes)
        }))
    }

    #[test]
    fn wrong_kernels_are_switched_off_and_named() {
        let off = |kernel: &str, flag: Option<&str>| Switch { kernel: kernel.into(), flag: flag.map(str::to_string) };
        for (gpu, (name, options)) in devices().into_iter().zip(OpenOptions::PROFILES) {
            // A kernel with subgroups is used without them. One with a substitute is switched off. Another one is an error.
            let mut expected = Vec::new();
            if gpu.caps().subgroups.is_some() {
                let found = run_wrong(&gpu, |kernel, variant| kernel == "rms_norm" && variant.has_flag("SUBGROUPS"));
                expected.push(off("rms_norm", Some("SUBGROUPS")));
                assert_eq!(found.unwrap(), expected, "{name}");
            }
            let substituted = if LaneRows::supports(gpu.caps()) { LaneRows::NAME } else { "gemv_add" };
            let has_flag = LaneRows::supports(gpu.caps()) || gpu.caps().subgroups.is_some();
            let found = run_wrong(&gpu, |kernel, _| kernel == substituted).unwrap();
            if has_flag {
                expected.push(off(substituted, Some("SUBGROUPS")));
            }
            expected.push(off(substituted, None));
            assert_eq!(found, expected, "{name}");
            // Switches stay, and the other kernels are correct.
            assert_eq!(block_on(run(&gpu, &workload())).unwrap().0, expected, "{name}");
            let error = run_wrong(&gpu, |kernel, _| kernel == "rope").unwrap_err();
            assert!(matches!(&error, Error::WrongKernel { kernel, .. } if kernel == "rope"), "{error}");
            assert!(error.to_string().contains("wrong") && error.hint().is_some(), "{options:?}");
        }
    }

    #[test]
    fn keys_differ_by_device_and_workload() {
        let [gpu, lesser, ..] = &devices()[..] else { return };
        let other = Workload { kv: KvDtype::F32, ..workload() };
        assert_eq!(key(gpu, &workload()), key(gpu, &workload()));
        assert_ne!(key(gpu, &workload()), key(gpu, &other));
        assert_ne!(key(gpu, &workload()), key(lesser, &workload()));
    }
}
