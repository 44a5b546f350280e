//! Probes the size of subgroups on a device: [`has_lanes`]. Drivers guarantee only a range. Some kernels, for example products by matrix
//! units, need one size; they run if every probed subgroup has it.

use super::{buffer::Buffer, device::Gpu, recorder::Recorder};
use crate::{
    Kernel, Result, Variant,
    kernel::{Access, Params, params},
};

params! { struct ProbeParams { groups: u32 } }

static KERNEL: Kernel = Kernel {
    name: "probe",
    wgsl: include_str!("probe.wgsl"),
    bindings: &[Access::ReadWrite, Access::ReadWrite],
    params: ProbeParams::LAYOUT,
    ..Kernel::DEFAULTS
};

/// Lanes of the probed workgroups. The kernels' workgroups are among them.
const WORKGROUPS: [u32; 4] = [64, 96, 128, 256];
/// Workgroups of each size: a few per processor.
const GROUPS: usize = 64;

/// Returns true if every subgroup has `lanes` lanes, and `subgroup_id` and `subgroup_invocation_id` number the lanes of a workgroup.
///
/// Errors: errors of the device.
pub(super) async fn has_lanes(gpu: &Gpu, lanes: u32) -> Result<bool> {
    for workgroup in WORKGROUPS {
        let mut recorder = Recorder::new(gpu);
        let len = GROUPS * workgroup as usize;
        let (sizes, numbers): (Buffer<u32>, Buffer<u32>) = (recorder.temporary(len), recorder.temporary(len));
        let variant = Variant::new().constant_is("WORKGROUP", workgroup).subgroups(gpu.caps());
        let params = ProbeParams { groups: GROUPS as u32 };
        recorder.dispatch(&KERNEL, &variant, &params, &[(&sizes).into(), (&numbers).into()], GROUPS);
        let (sizes, numbers) = (recorder.read(&sizes)?, recorder.read(&numbers)?);
        let (sizes, numbers) = (sizes.await?, numbers.await?);
        let are_numbered = |numbers: &[u32]| {
            let mut numbers = numbers.to_vec();
            numbers.sort_unstable();
            numbers.into_iter().eq(0..workgroup)
        };
        if sizes.iter().any(|size| *size != lanes) || !numbers.chunks_exact(workgroup as usize).all(are_numbered) {
            return Ok(false);
        }
    }
    Ok(true)
}
