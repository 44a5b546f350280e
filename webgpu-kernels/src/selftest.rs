//! The kernels of a model against their references, on the device that is to run it, before it does.
//!
//! Drivers have bugs, and a kernel that a driver gets wrong gives fluent nonsense. [`run`] is called when a model is
//! loaded; a variant that is wrong is switched off ([`Gpu::switch_off`]), and what does the same in another way is taken
//! instead. The cases are those of the tests, the smallest of each variant, and for kernels whose variants depend on a
//! model's widths small ones of these widths.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use model_format::decoder_config::Activation;

use crate::{
    Case, CaseSet, Error, Gpu, KERNELS, Kernel, KvDtype, Result, Variant, WeightFormat,
    attention::{self, HeadShape},
    case_check::{Outcome, check_divided},
    gemm::{Cooperative, LaneRows, Narrow},
    gemv,
    tuning::{PRESETS_FLAG, checks_of},
};

/// What a model asks of the kernels, as far as their variants depend on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Format and inputs of each kind of weight matrix.
    pub matrices: Vec<(WeightFormat, usize)>,
    /// Heads of each kind of layer.
    pub attention: Vec<HeadShape>,
    /// How keys and values are stored.
    pub kv: KvDtype,
    /// Of the gate.
    pub activation: Activation,
    /// Whether queries and keys are normed.
    pub norm_heads: bool,
    /// Whether logits are capped.
    pub soft_cap: bool,
    /// In which variants it runs kernels, of those whose variants follow from the above and from [`Workload::most_rows`]; empty
    /// where that is not known: what might be run is checked then.
    pub variants: Vec<(&'static str, Variant)>,
    /// The largest number of rows, of those that variants depend on, that it is run with at a time.
    pub most_rows: usize,
}

/// A kernel that is not used as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Switch {
    /// Name of the kernel.
    pub kernel: String,
    /// The part of it that is not used: a flag of its variants. `None`: none of it.
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

/// Flags of variants that compute the same without.
const OPTIONAL_FLAGS: [&str; 1] = ["SUBGROUPS"];
/// Kernels that others do the work of.
const SUBSTITUTED: [&str; 14] = [
    "attention_teams",
    "gemv_add",
    "gemv_scaled",
    "gemv_rope",
    "gemv_chain",
    "gemv_chain_attention",
    "gemv_chain_start",
    "gemm_lane_rows",
    Cooperative::NAME,
    Narrow::NAME,
    "sample_adjust",
    "sample_select",
    "sample_weigh",
    "sample_draw",
];
/// Kernels that no model is run with: of measuring, and of the quantizer.
const NOT_OF_MODELS: [&str; 13] = [
    "copy",
    "cross_entropy",
    "kl_divergence",
    "gram",
    "token_weight",
    "rank_update",
    "row_dots",
    "gptq_columns",
    "gptq_scales",
    "gptq_codes",
    "gptq_errors",
    "gptq_arrange",
    "gptq_diagonal",
];

/// Kernels, or beginnings of their names, whose variants follow from what is asked while a model answers: how long the text is,
/// how a token is chosen.
const OF_ANSWERS: [&str; 7] =
    ["argmax", "attention_decode", "attention_reduce", "attention_teams", "embedding", "sample_", "select_rows"];

/// A case that was run.
pub struct Line {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// The variant.
    pub variant: Variant,
    /// The shape.
    pub label: String,
    /// How it came out.
    pub outcome: Outcome,
}

/// Checks what `workload` needs and switches off what is wrong; returns that, and how many cases were run.
///
/// Errors: [`Error::WrongKernel`] where nothing does the same; the device's.
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
                left.push(Left { key, case: Arc::new(case), choice });
            }
        }
        let outcomes = check(&left.iter().map(|left| left.case.clone()).collect::<Vec<_>>()).await?;
        gpu.shared.forgive();
        let mut is_all_right = true;
        for (Left { key: (kernel, variant), choice, .. }, outcome) in left.into_iter().zip(outcomes) {
            let Err(reason) = outcome else {
                passed.push((kernel, variant));
                continue;
            };
            is_all_right = false;
            if let Some(name) = choice {
                // Its own rule does the same.
                gpu.switch_off(Switch { kernel: name.into(), flag: Some(PRESETS_FLAG.into()) });
                continue;
            }
            let flag = OPTIONAL_FLAGS.iter().find(|flag| variant.has_flag(flag));
            if flag.is_none() && !SUBSTITUTED.contains(&kernel) {
                let (kernel, variant) = (kernel.into(), variant.to_string());
                return Err(Error::WrongKernel { kernel, variant, adapter: gpu.summary().name.clone(), reason });
            }
            let switch = Switch { kernel: kernel.into(), flag: flag.map(|flag| flag.to_string()) };
            if !gpu.switched_off().contains(&switch) {
                gpu.switch_off(switch);
            }
        }
        if is_all_right {
            return Ok(gpu.switched_off());
        }
        // What takes the place of what was switched off is to be checked too.
    }
}

/// A case that is to be run.
struct Left {
    /// Kernel and variant.
    key: (&'static str, Variant),
    case: Arc<Case>,
    /// The name of a choice that it is the check of.
    choice: Option<&'static str>,
}

/// Every variant of every kernel in its smallest test case; nothing is switched off. For who wants to know all.
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

/// A number that differs where the device, its driver, the kernels or the work do.
pub fn key(gpu: &Gpu, workload: &Workload) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Its variants follow from the rest, and from choices whose candidates are checked where they are measured.
    let workload = Workload { variants: Vec::new(), ..workload.clone() };
    (device_key(gpu), format!("{workload:?}"), format!("{:?}", gpu.presets())).hash(&mut hasher);
    hasher.finish()
}

/// A number that differs where the device, its driver or the kernels do.
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

/// The cases that a model's work is made of on this device.
fn cases_of(gpu: &Gpu, workload: &Workload) -> Vec<(&'static Kernel, Case)> {
    let caps = gpu.caps();
    let has_ragged = workload.matrices.iter().any(|(_, cols)| !cols.is_multiple_of(4));
    let in_lane_rows = LaneRows::supports(caps) && !gpu.is_off(LaneRows::NAME);
    let is_used = |kernel: &Kernel, variant: &Variant| {
        let weights = variant.weights.is_none_or(|format| workload.matrices.iter().any(|(of, _)| *of == format));
        let fits = match kernel.name {
            name if NOT_OF_MODELS.contains(&name) || gpu.is_off(name) => false,
            name if name == LaneRows::NAME => in_lane_rows,
            "gemm" => !in_lane_rows,
            Cooperative::NAME | Narrow::NAME => Cooperative::supports_device(caps) && !gpu.is_off(Cooperative::NAME),
            "norm_heads" => workload.norm_heads,
            "soft_cap" => workload.soft_cap,
            "glu" => variant.has_flag("GELU") == (workload.activation == Activation::GeluTanh),
            "rope" => workload.kv.is_of(variant),
            // Their variants are as wide as the model.
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
    // What takes the place of something that was switched off is in no plan.
    if !workload.variants.is_empty() && gpu.switched_off().is_empty() {
        cases.retain(|(kernel, case)| {
            OF_ANSWERS.iter().any(|name| kernel.name.starts_with(name))
                || workload.variants.iter().any(|(name, variant)| *name == kernel.name && *variant == case.variant)
        });
    }
    cases
}

/// Of which of `workload`'s variants there is no case.
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
        let attention = HeadShape { group: 3, head_dim: 64, soft_cap: false, window: false };
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

    /// The first adapter as each profile has it. Without one: skipped, with the reason.
    fn devices() -> Vec<Gpu> {
        OpenOptions::PROFILES.into_iter().filter_map(|(_, options)| for_test(options)).collect()
    }

    #[test]
    fn right_kernels_stay_on() {
        for gpu in devices() {
            assert_eq!(block_on(run(&gpu, &workload())).unwrap().0, []);
        }
    }

    /// Runs with kernels that are wrong wherever `is_wrong` says so of kernel and variant.
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
            // A kernel with subgroups goes on without; one that others stand in for goes; a plain one is an error.
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
            // What was switched off stays so, and the rest is right.
            assert_eq!(block_on(run(&gpu, &workload())).unwrap().0, expected, "{name}");
            let error = run_wrong(&gpu, |kernel, _| kernel == "rope").unwrap_err();
            assert!(matches!(&error, Error::WrongKernel { kernel, .. } if kernel == "rope"), "{error}");
            assert!(error.to_string().contains("wrong") && error.hint().is_some(), "{options:?}");
        }
    }

    #[test]
    fn keys_differ_by_device_and_work() {
        let [gpu, lesser, ..] = &devices()[..] else { return };
        let other = Workload { kv: KvDtype::F32, ..workload() };
        assert_eq!(key(gpu, &workload()), key(gpu, &workload()));
        assert_ne!(key(gpu, &workload()), key(gpu, &other));
        assert_ne!(key(gpu, &workload()), key(lesser, &workload()));
    }
}
