//! [`DeviceChoice`]: the meaning of `--device` in every program.

use std::{convert::Infallible, fmt, str::FromStr};

use webgpu_kernels::{
    Gpu,
    gpu::{AdapterSummary, DeviceType, OpenOptions, Selection},
};

use crate::{Error, Result};

/// A parsed `--device` value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that opens, else the CPU. Skips software GPUs, because the CPU backend is faster.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first adapter of [`Gpu::adapters`], software GPUs included.
    Gpu,
    /// The adapter with this number in [`Gpu::adapters`].
    Index(usize),
    /// The first adapter whose name contains this text, ignoring case.
    Name(String),
}

impl FromStr for DeviceChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<DeviceChoice, Infallible> {
        Ok(match text.parse() {
            Ok(index) => DeviceChoice::Index(index),
            Err(_) if text.eq_ignore_ascii_case("auto") => DeviceChoice::Auto,
            Err(_) if text.eq_ignore_ascii_case("cpu") => DeviceChoice::Cpu,
            Err(_) if text.eq_ignore_ascii_case("gpu") => DeviceChoice::Gpu,
            Err(_) => DeviceChoice::Name(text.into()),
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Gpu => f.write_str("gpu"),
            DeviceChoice::Index(index) => write!(f, "{index}"),
            DeviceChoice::Name(name) => f.write_str(name),
        }
    }
}

/// The device that a [`DeviceChoice`] selects from a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PickedDevice {
    /// The CPU. The text explains a fallback from `auto`.
    Cpu(Option<String>),
    /// The adapter with this number in the list.
    Gpu(usize),
}

/// The device that [`DeviceChoice::open`] opened.
pub struct OpenedDevice {
    /// The GPU; `None` for the CPU.
    pub gpu: Option<Gpu>,
    /// The device's name, for messages.
    pub name: String,
    /// Explains a fallback to the CPU.
    pub note: Option<String>,
}

impl DeviceChoice {
    /// The help text of `--device`.
    pub const HELP: &str = "Device: `auto` (a GPU if there is one, else the CPU), `cpu`, `gpu` (the first GPU, even a software \
                            one), or a number or part of a name from `chat-cli devices`";

    /// Selects one of `devices`.
    ///
    /// Errors: [`Error::NoSuchDevice`] with the list of devices.
    pub fn pick(&self, devices: &[AdapterSummary]) -> Result<PickedDevice> {
        let found = match self {
            DeviceChoice::Cpu => return Ok(PickedDevice::Cpu(None)),
            DeviceChoice::Auto => match devices.iter().position(|device| device.device_type != DeviceType::Cpu) {
                Some(index) => Some(index),
                None => return Ok(PickedDevice::Cpu(Some(no_gpu(devices)))),
            },
            DeviceChoice::Gpu => (!devices.is_empty()).then_some(0),
            DeviceChoice::Index(index) => (*index < devices.len()).then_some(*index),
            DeviceChoice::Name(part) => {
                let part = part.to_lowercase();
                devices.iter().position(|device| device.name.to_lowercase().contains(&part))
            }
        };
        let found = found.map(PickedDevice::Gpu);
        found.ok_or_else(|| Error::NoSuchDevice {
            choice: self.to_string(),
            found: devices.iter().enumerate().map(|(index, device)| format!("{index} {}", device.name)).collect(),
        })
    }

    /// Opens the selected device of this machine. [`DeviceChoice::Auto`] falls back to the CPU if the GPU does not open.
    pub async fn open(&self, options: OpenOptions) -> Result<OpenedDevice> {
        let devices = if *self == DeviceChoice::Cpu { Vec::new() } else { Gpu::adapters().await };
        let cpu = |note| OpenedDevice { gpu: None, name: "the CPU".into(), note };
        let index = match self.pick(&devices)? {
            PickedDevice::Cpu(note) => return Ok(cpu(note)),
            PickedDevice::Gpu(index) => index,
        };
        let name = devices[index].name.clone();
        match Gpu::open(&Selection::Index(index), options).await {
            Ok(gpu) => Ok(OpenedDevice { gpu: Some(gpu), name, note: None }),
            Err(error) if *self == DeviceChoice::Auto => {
                Ok(cpu(Some(format!("`{name}` does not open ({error}), running on the CPU"))))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn no_gpu(devices: &[AdapterSummary]) -> String {
    match devices.first() {
        Some(software) => format!(
            "no GPU found, running on the CPU (`{}` is a software device; select it with `--device gpu`)",
            software.name
        ),
        None => "no GPU found, running on the CPU".into(),
    }
}

#[cfg(test)]
mod tests {
    use webgpu_kernels::gpu::Caps;

    use super::*;

    fn device(name: &str, device_type: DeviceType) -> AdapterSummary {
        AdapterSummary {
            name: name.into(),
            backend: "vulkan".into(),
            device_type,
            driver: "1.0".into(),
            memory: None,
            caps: Caps::WEBGPU_DEFAULTS,
        }
    }

    fn pick(text: &str, devices: &[AdapterSummary]) -> Result<PickedDevice, String> {
        text.parse::<DeviceChoice>().unwrap().pick(devices).map_err(|error| error.to_string())
    }

    #[test]
    fn auto_prefers_a_gpu_and_skips_software_devices() {
        let (software, real) = (DeviceType::Cpu, DeviceType::Discrete);
        let both = [device("llvmpipe (LLVM 15)", software), device("NVIDIA H100", real)];
        assert_eq!(pick("auto", &both), Ok(PickedDevice::Gpu(1)));
        assert_eq!(pick("cpu", &both), Ok(PickedDevice::Cpu(None)));
        assert_eq!(pick("GPU", &both[..1]), Ok(PickedDevice::Gpu(0)));
        assert_eq!(pick("0", &both), Ok(PickedDevice::Gpu(0)));
        assert_eq!(pick("LLVM", &both), Ok(PickedDevice::Gpu(0)));
        let Ok(PickedDevice::Cpu(Some(why))) = pick("auto", &both[..1]) else { panic!("not the CPU") };
        assert!(why.contains("llvmpipe") && why.contains("no GPU"));
        assert_eq!(pick("Auto", &[]), Ok(PickedDevice::Cpu(Some("no GPU found, running on the CPU".into()))));
    }

    #[test]
    fn an_unknown_device_is_an_error_that_lists_the_devices() {
        let devices = [device("llvmpipe", DeviceType::Cpu), device("NVIDIA H100", DeviceType::Discrete)];
        for choice in ["2", "radeon"] {
            let error = pick(choice, &devices).unwrap_err();
            assert!(error.contains(choice) && error.contains("0 llvmpipe, 1 NVIDIA H100"), "{error}");
        }
        assert!(pick("gpu", &[]).unwrap_err().contains("no GPU"));
    }

    #[test]
    fn display_is_the_inverse_of_parsing() {
        for text in ["auto", "cpu", "gpu", "3", "Radeon RX"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }
}
