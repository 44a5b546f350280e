//! Compares every case of every kernel with its reference on a device, once with each profile ([`OpenOptions::PROFILES`]).
//!
//! If the device lacks a capability, its cases are skipped with the reason. `REQUIRE_GPU=1` turns a skip into a failure. `KERNEL=PREFIX`
//! selects kernels by the beginning of their names, and `CASE=TEXT` cases by a part of their labels.

use webgpu_kernels::{
    Case, CaseSet, KERNELS, Kernel,
    case_check::check,
    gpu::{Gpu, OpenOptions, Selection, block_on},
};

/// Opens the device. Prints the reason if there is none.
fn open(options: OpenOptions) -> Option<Gpu> {
    match block_on(Gpu::open(&Selection::Auto, options)) {
        Ok(gpu) => Some(gpu),
        Err(e) => {
            skip(&format!("no device: {e}"));
            None
        }
    }
}

fn skip(reason: &str) {
    let is_required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
    assert!(!is_required, "REQUIRE_GPU=1, but {reason}");
    println!("skipped: {reason}");
}

#[test]
fn with_all_capabilities() {
    check_profile(0);
}

#[test]
fn with_the_kernels_of_real_gpus() {
    check_profile(1);
}

#[test]
fn without_subgroups() {
    check_profile(2);
}

#[test]
fn with_webgpu_defaults() {
    check_profile(3);
}

#[test]
fn with_all_subgroups_larger_than_their_smallest_size() {
    check_profile(4);
}

/// Each profile is its own test, so that they run in parallel.
fn check_profile(index: usize) {
    let (name, options) = OpenOptions::PROFILES[index];
    let Some(gpu) = open(options) else { return };
    if gpu.caps().subgroups.is_none() && options.subgroups {
        skip(&format!("{}: subgroup variants: the device has no subgroups", gpu.summary().name));
    }
    assert!(!gpu.caps().f16 || options.f16, "{name}: f16");
    assert!(gpu.caps().subgroups.is_none() || options.subgroups, "{name}: subgroups");
    let size = std::env::var("SUBGROUP_SIZE").ok();
    if let (Some(size), Some(sizes)) = (size.clone(), gpu.caps().subgroups) {
        let size: u32 = size.parse().expect("SUBGROUP_SIZE is a number");
        let least = if options.narrow { size / 2 } else { size };
        assert_eq!((sizes.min, sizes.max), (least, size), "SUBGROUP_SIZE is not the size of the device's subgroups");
    }
    println!("{name}");
    // SUBGROUP_SIZE affects only variants with subgroups.
    check_all(&gpu, index, size.is_some());
}

/// Profiles begin with different kernels, because they run in parallel: one compiles a kernel, and the others find it in the driver's cache.
fn check_all(gpu: &Gpu, index: usize, is_of_subgroups: bool) {
    println!("{}: {:?}", gpu.summary().name, gpu.caps());
    let mut failures = Vec::new();
    let mut count = 0;
    let first = index * KERNELS.len() / OpenOptions::PROFILES.len();
    let [wanted, label] = ["KERNEL", "CASE"].map(|name| std::env::var(name).unwrap_or_default());
    let kernels = KERNELS.iter().cycle().skip(first).take(KERNELS.len());
    for kernel in kernels.filter(|kernel| kernel.name.starts_with(&wanted)) {
        let cases = (kernel.cases)(gpu.caps(), CaseSet::Test).into_iter();
        let is_wanted =
            |case: &Case| (!is_of_subgroups || case.variant.has_flag("SUBGROUPS")) && case.label.contains(&label);
        for case in cases.filter(is_wanted) {
            count += 1;
            let start = std::time::Instant::now();
            match block_on(check(gpu, &case)).unwrap() {
                Ok(nmse) => report(kernel, &case, start, nmse),
                Err(reason) => failures.push(format!("{} {} [{}]: {reason}", kernel.name, case.label, case.variant)),
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
    println!("{count} cases");
    let least = if is_of_subgroups { 100 } else { 500 };
    assert!(count >= least || !wanted.is_empty() || !label.is_empty(), "{count} cases");
}

fn report(kernel: &Kernel, case: &Case, start: std::time::Instant, nmse: f64) {
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    println!("{milliseconds:6.1} ms  {nmse:.2e}  {} {} [{}]", kernel.name, case.label, case.variant);
}
