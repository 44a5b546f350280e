//! The work of a child process: it announces a variant, then compiles it. A compiler may abort or hang; the last
//! announced variant tells the parent which one.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    io::{self, Write},
};

use anyhow::Result;
use infer_core::planned_work;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use webgpu_kernels::{CaseSet, Gpu, KERNELS, Kernel, KvDtype, Variant, gpu::Caps};

use crate::{
    compiler::{Compiled, Compiler, label},
    cost::{Forecast, Model, POSITION, PROMPT, format, shape},
    devices::{Device, direct3d_caps, metal_caps},
    dxc::Dxc,
    presets,
    shader::Shader,
};

/// A line of a child's output, as JSON.
#[derive(Serialize, Deserialize)]
pub enum Message {
    /// The label of the variant that is compiled next.
    Compiling(String),
    /// The result, at the end.
    Done(Box<Report>),
}

/// The result of a child.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    /// The device, or the languages.
    pub name: String,
    /// The compiler and the device's capabilities.
    pub about: String,
    pub variants: Vec<Entry>,
    /// Faults other than refused variants.
    pub faults: Vec<String>,
    /// Predictions for a modeled device.
    pub forecasts: Vec<Forecast>,
    /// Rules for presets.json, if requested.
    pub rules: Vec<Value>,
}

/// The result of one variant.
#[derive(Serialize, Deserialize)]
pub struct Entry {
    pub kernel: String,
    pub variant: String,
    /// Statistics of the driver's compiler.
    pub compiled: Option<Compiled>,
    /// The compiler's reason for rejecting the variant.
    pub refused: Option<String>,
}

/// Sends a line to the parent and flushes it.
pub fn send(message: &Message) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(message)?)?;
    Ok(out.flush()?)
}

/// Variants of all test and benchmark cases for a device with these capabilities.
fn variants_of_cases(caps: &Caps) -> impl Iterator<Item = (&'static Kernel, Variant)> {
    let of_kernel =
        |kernel: &'static Kernel, set| (kernel.cases)(caps, set).into_iter().map(move |case| (kernel, case.variant));
    let of_set = |set| KERNELS.iter().flat_map(move |kernel| of_kernel(kernel, set)).collect::<Vec<_>>();
    [CaseSet::Bench, CaseSet::Test].map(of_set).into_iter().flatten()
}

/// Kernel variants of Llama-3.2-3B on a device, for a decoded token and a prompt.
fn planned(gpu: &Gpu) -> Result<Vec<(&'static Kernel, Variant)>> {
    let mut all = Vec::new();
    for (rows, position) in [(1, POSITION), (PROMPT, 0)] {
        let work = planned_work(&shape("llama-3.2-3b"), format(), gpu, KvDtype::F16, position, rows)?;
        all.extend(work.dispatches.into_iter().map(|traced| (traced.kernel, traced.variant)));
    }
    Ok(all)
}

/// Compiles every variant for `device` except those named in `skip`, and predicts a model's speed.
pub fn device(device: &Device, skip: &[String], with_presets: bool) -> Result<Report> {
    let gpu = device.gpu()?;
    let required_lanes = device.caps.and_then(|caps| caps.subgroups).map(|sizes| sizes.min);
    let compiler = Compiler::open(gpu.caps(), required_lanes)?;
    let planned = planned(&gpu)?;
    let mut report = Report {
        name: device.name.into(),
        about: format!("{} by {}, {:?}", device.product, gpu.summary().driver, gpu.caps()),
        ..Report::default()
    };
    for expected in device.expected {
        if !planned.iter().any(|(kernel, _)| kernel.name == *expected) {
            report.faults.push(format!("missing: Llama-3.2-3B does not use `{expected}`"));
        }
    }
    let mut seen = BTreeSet::new();
    let mut all = HashMap::new();
    for (kernel, variant) in variants_of_cases(gpu.caps()).chain(planned) {
        let label = label(kernel, &variant);
        if skip.contains(&label) || !seen.insert(label.clone()) {
            continue;
        }
        send(&Message::Compiling(label))?;
        let compiled = compiler.compile(kernel, &variant);
        report.variants.push(Entry {
            kernel: kernel.name.into(),
            variant: variant.to_string(),
            compiled: compiled.as_ref().ok().cloned(),
            refused: compiled.as_ref().err().cloned(),
        });
        all.insert((kernel.name, variant), compiled);
    }
    if let Some(speed) = device.speed {
        send(&Message::Compiling("variants of the cost model".into()))?;
        let announce = |label: &str| match skip.iter().any(|skipped| skipped == label) {
            true => Err("the compiler crashed".into()),
            false => send(&Message::Compiling(label.into())).map_err(|error| error.to_string()),
        };
        let mut model = Model { gpu: &gpu, speed, compiler: &compiler, announce: &announce, compiled: all };
        match model.forecasts() {
            Ok(forecasts) => report.forecasts = forecasts,
            Err(fault) => report.faults.push(fault),
        }
        let least = [speed.least.0, speed.least.1];
        for (forecast, least) in report.forecasts.iter().zip(least) {
            let predicted = forecast.tokens_per_second();
            if predicted < least {
                let rows = forecast.rows;
                report.faults.push(format!("{predicted:.1} tokens/s predicted for {rows} rows, below {least}"));
            }
        }
        if with_presets {
            report.rules = presets::rules(&mut model)?;
        }
    }
    Ok(report)
}

/// Translates part `part` of `parts` of all variants to HLSL and MSL. DXC, if available, compiles the HLSL.
pub fn texts(part: usize, parts: usize, dxc: Option<&OsString>, skip: &[String]) -> Result<Report> {
    let dxc = dxc.map(|file| Dxc::load(file)).transpose()?;
    let languages = if dxc.is_some() { "HLSL (compiled by DXC) and MSL" } else { "HLSL (not compiled) and MSL" };
    let mut report = Report { name: "hlsl-msl".into(), about: languages.into(), ..Report::default() };
    let mut seen = BTreeSet::new();
    let direct3d = direct3d_caps().into_iter().map(|caps| (caps, true));
    let all = direct3d.chain(metal_caps().into_iter().map(|caps| (caps, false)));
    let all = all
        .flat_map(|(caps, is_direct3d)| variants_of_cases(&caps).map(move |it| (it, is_direct3d)).collect::<Vec<_>>());
    for ((kernel, variant), is_direct3d) in all {
        let label = label(kernel, &variant);
        if !seen.insert(label.clone()) || seen.len() % parts != part || skip.contains(&label) {
            continue;
        }
        send(&Message::Compiling(label))?;
        let written = Shader::parse(kernel, &variant).and_then(|shader| {
            shader.msl()?;
            let (hlsl, entry_point) = shader.hlsl()?;
            let dxc = dxc.as_ref().filter(|_| is_direct3d);
            dxc.map_or(Ok(()), |dxc| dxc.compile(&hlsl, &entry_point))
        });
        let (kernel, variant) = (kernel.name.into(), variant.to_string());
        report.variants.push(Entry { kernel, variant, compiled: None, refused: written.err() });
    }
    Ok(report)
}
