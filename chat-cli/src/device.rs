//! Which device a model runs on: the list of `chat-cli devices`, and what `--device` means.

use std::str::FromStr;

use infer_core::{AdapterSummary, DeviceType};
use serde_json::{Value, json};

use crate::report::table;

/// A device, as `chat-cli devices` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The name its driver gives it.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `software` ...
    pub kind: String,
    /// Whether it is the processor in the role of a GPU.
    pub is_software: bool,
    /// Driver and version.
    pub driver: String,
    /// Whether shaders compute in f16.
    pub f16: bool,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
}

impl From<AdapterSummary> for DeviceInfo {
    fn from(summary: AdapterSummary) -> DeviceInfo {
        DeviceInfo {
            kind: summary.device_type.to_string(),
            is_software: summary.device_type == DeviceType::Cpu,
            name: summary.name,
            backend: summary.backend,
            driver: summary.driver,
            f16: summary.caps.f16,
            max_buffer: summary.caps.max_buffer,
        }
    }
}

/// What `--device` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first of the list, also a software device.
    Gpu,
    /// By its number in the list.
    Index(usize),
    /// The first whose name contains this, in any case.
    Name(String),
}

impl FromStr for DeviceChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<DeviceChoice, Self::Err> {
        Ok(match text.parse() {
            Ok(index) => DeviceChoice::Index(index),
            Err(_) if text.eq_ignore_ascii_case("auto") => DeviceChoice::Auto,
            Err(_) if text.eq_ignore_ascii_case("cpu") => DeviceChoice::Cpu,
            Err(_) if text.eq_ignore_ascii_case("gpu") => DeviceChoice::Gpu,
            Err(_) => DeviceChoice::Name(text.to_string()),
        })
    }
}

/// Where to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the CPU, with the reason if the user may wonder.
    Cpu(Option<String>),
    /// On the device of that number.
    Device(usize),
}

impl DeviceChoice {
    /// Picks from `devices`; an error says what there is.
    ///
    /// Left to choose, a software device is not taken: the CPU backend is faster than a GPU played by the CPU.
    pub fn pick(&self, devices: &[DeviceInfo]) -> Result<Place, String> {
        let found = match self {
            DeviceChoice::Cpu => return Ok(Place::Cpu(None)),
            DeviceChoice::Auto => match devices.iter().position(|device| !device.is_software) {
                Some(index) => Some(index),
                None => return Ok(Place::Cpu(Some(no_gpu(devices)))),
            },
            DeviceChoice::Gpu => (!devices.is_empty()).then_some(0),
            DeviceChoice::Index(index) => (*index < devices.len()).then_some(*index),
            DeviceChoice::Name(part) => {
                let part = part.to_lowercase();
                devices.iter().position(|device| device.name.to_lowercase().contains(&part))
            }
        };
        found.map(Place::Device).ok_or_else(|| match self {
            DeviceChoice::Gpu => "there is no GPU, nor a driver that plays one".into(),
            DeviceChoice::Index(index) => format!("there is no device number {index}"),
            DeviceChoice::Name(name) => format!("no device is called `{name}`"),
            DeviceChoice::Auto | DeviceChoice::Cpu => unreachable!("the CPU is always there"),
        })
    }
}

fn no_gpu(devices: &[DeviceInfo]) -> String {
    match devices.first() {
        Some(software) => format!(
            "no GPU found, running on the CPU (`{}` is a software device; `--device 0` uses it all the same)",
            software.name
        ),
        None => "no GPU found, running on the CPU".into(),
    }
}

/// The table of `chat-cli devices`.
pub fn devices_table(devices: &[DeviceInfo]) -> String {
    let heading = ["DEVICE", "NAME", "KIND", "BACKEND", "F16", "MAX BUFFER", "DRIVER"];
    let mut rows = vec![heading.map(str::to_string).to_vec()];
    for (index, device) in devices.iter().enumerate() {
        rows.push(vec![
            index.to_string(),
            device.name.clone(),
            device.kind.clone(),
            device.backend.clone(),
            if device.f16 { "yes" } else { "no" }.to_string(),
            format!("{:.1} GiB", device.max_buffer as f64 / f64::from(1 << 30)),
            device.driver.clone(),
        ]);
    }
    rows.push(["cpu", "this machine's processor", "CPU", "candle"].map(str::to_string).to_vec());
    table(&rows)
}

/// The same for programs.
pub fn devices_json(devices: &[DeviceInfo]) -> Value {
    let entry = |(index, device): (usize, &DeviceInfo)| {
        json!({
            "device": index,
            "name": device.name,
            "kind": device.kind,
            "is_software": device.is_software,
            "backend": device.backend,
            "driver": device.driver,
            "f16": device.f16,
            "max_buffer_bytes": device.max_buffer,
        })
    };
    Value::Array(devices.iter().enumerate().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, is_software: bool) -> DeviceInfo {
        DeviceInfo {
            name: name.into(),
            backend: "vulkan".into(),
            kind: if is_software { "software" } else { "discrete GPU" }.into(),
            is_software,
            driver: "1.0".into(),
            f16: true,
            max_buffer: 2 << 30,
        }
    }

    fn pick(text: &str, devices: &[DeviceInfo]) -> Result<Place, String> {
        text.parse::<DeviceChoice>().unwrap().pick(devices)
    }

    #[test]
    fn a_gpu_is_preferred_and_software_must_be_asked_for() {
        let both = [device("llvmpipe (LLVM 15)", true), device("NVIDIA H100", false)];
        assert_eq!(pick("auto", &both), Ok(Place::Device(1)));
        assert_eq!(pick("cpu", &both), Ok(Place::Cpu(None)));
        assert_eq!(pick("gpu", &both[..1]), Ok(Place::Device(0)));
        assert!(pick("gpu", &[]).is_err());
        assert_eq!(pick("0", &both), Ok(Place::Device(0)));
        assert_eq!(pick("LLVM", &both), Ok(Place::Device(0)));
        assert!(pick("2", &both).unwrap_err().contains("number 2"));
        assert!(pick("radeon", &both).unwrap_err().contains("radeon"));
        let Ok(Place::Cpu(Some(why))) = pick("auto", &both[..1]) else { panic!("not the CPU") };
        assert!(why.contains("llvmpipe") && why.contains("no GPU"));
        assert_eq!(pick("Auto", &[]), Ok(Place::Cpu(Some("no GPU found, running on the CPU".into()))));
    }

    #[test]
    fn the_table_has_a_line_for_each_and_for_the_cpu() {
        let table = devices_table(&[device("NVIDIA H100", false)]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], "0       NVIDIA H100               discrete GPU  vulkan   yes  2.0 GiB     1.0");
        assert!(lines[2].starts_with("cpu"));
        assert_eq!(devices_json(&[device("a", true)])[0]["is_software"], true);
    }
}
