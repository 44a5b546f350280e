//! On a device: every case of every kernel against its reference, on the device as it is and as lesser ones
//! ([`OpenOptions::PROFILES`]).
//!
//! A device that lacks something skips that with the reason printed; `REQUIRE_GPU=1` turns a skip into a failure. `KERNEL=NAME` checks
//! only kernels whose names begin so.

use webgpu_kernels::{
    Case, CaseSet, KERNELS, Kernel,
    case_check::check,
    gpu::{Gpu, OpenOptions, Selection, block_on},
};

/// The device, or `None` with the reason printed.
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
fn with_all_that_the_device_has() {
    check_profile(0);
}

#[test]
fn with_the_kernels_of_real_gpus() {
    check_profile(1);
}

#[test]
fn with_f16_and_no_subgroups() {
    check_profile(2);
}

#[test]
fn with_what_every_webgpu_device_has() {
    check_profile(3);
}

#[test]
fn with_all_subgroups_larger_than_the_smallest() {
    check_profile(4);
}

/// Each profile is a test of its own, so that they run side by side.
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
        assert_eq!((sizes.min, sizes.max), (least, size), "the subgroups that are to be tested");
    }
    println!("{name}");
    // Of what has no subgroups their size changes nothing.
    check_all(&gpu, index, size.is_some());
}

/// Devices that are tested side by side begin with different kernels: what one has compiled the others find in the
/// driver's cache.
fn check_all(gpu: &Gpu, index: usize, is_of_subgroups: bool) {
    println!("{}: {:?}", gpu.summary().name, gpu.caps());
    let mut failures = Vec::new();
    let mut count = 0;
    let first = index * KERNELS.len() / OpenOptions::PROFILES.len();
    let wanted = std::env::var("KERNEL").unwrap_or_default();
    let kernels = KERNELS.iter().cycle().skip(first).take(KERNELS.len());
    for kernel in kernels.filter(|kernel| kernel.name.starts_with(&wanted)) {
        let cases = (kernel.cases)(gpu.caps(), CaseSet::Test).into_iter();
        for case in cases.filter(|case| !is_of_subgroups || case.variant.has_flag("SUBGROUPS")) {
            count += 1;
            let start = std::time::Instant::now();
            if let Err(reason) = block_on(check(gpu, &case)).unwrap() {
                failures.push(format!("{} {} [{}]: {reason}", kernel.name, case.label, case.variant));
            }
            report(kernel, &case, start);
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
    println!("{count} cases");
    let least = if is_of_subgroups { 100 } else { 500 };
    assert!(count >= least || !wanted.is_empty(), "{count} cases");
}

fn report(kernel: &Kernel, case: &Case, start: std::time::Instant) {
    println!("{:6.1} ms  {} {} [{}]", start.elapsed().as_secs_f64() * 1e3, kernel.name, case.label, case.variant);
}
