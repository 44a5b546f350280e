//! [`DeviceChoice`]: what `--device` means, in every program.

use std::{convert::Infallible, fmt, str::FromStr};

use webgpu_kernels::{
    Gpu,
    gpu::{AdapterSummary, DeviceType, OpenOptions, Selection},
};

use crate::{Error, Result};

/// What `--device` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one that opens, else the CPU. A software device is not taken: the CPU backend is faster.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first of [`Gpu::adapters`], also a software device.
    Gpu,
    /// By its number in that list.
    Index(usize),
    /// The first whose name contains this, in any case.
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

/// Where a choice leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To the CPU, with the reason if the user may wonder.
    Cpu(Option<String>),
    /// To the device of that number.
    Gpu(usize),
}

/// What was opened.
pub struct OpenedDevice {
    /// The GPU; `None` for the CPU.
    pub gpu: Option<Gpu>,
    /// What to call it.
    pub name: String,
    /// Why it is the CPU, if the user may wonder.
    pub note: Option<String>,
}

impl DeviceChoice {
    /// What `--help` says.
    pub const HELP: &str = "The device: `auto` (a GPU if there is one, else the CPU), `cpu`, `gpu` (the first, also a software \
                            one), or a number or part of a name from `chat-cli devices`";

    /// Picks from the devices that there are.
    ///
    /// Errors: [`Error::NoSuchDevice`], with the list of them.
    pub fn pick(&self, devices: &[AdapterSummary]) -> Result<Place> {
        let found = match self {
            DeviceChoice::Cpu => return Ok(Place::Cpu(None)),
            DeviceChoice::Auto => match devices.iter().position(|device| device.device_type != DeviceType::Cpu) {
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
        let found = found.map(Place::Gpu);
        found.ok_or_else(|| Error::NoSuchDevice {
            choice: self.to_string(),
            found: devices.iter().enumerate().map(|(index, device)| format!("{index} {}", device.name)).collect(),
        })
    }

    /// Opens what it means on this machine. Where it is [`DeviceChoice::Auto`] and the GPU does not open, that is the CPU.
    pub async fn open(&self, options: OpenOptions) -> Result<OpenedDevice> {
        let devices = if *self == DeviceChoice::Cpu { Vec::new() } else { Gpu::adapters().await };
        let cpu = |note| OpenedDevice { gpu: None, name: "the CPU".into(), note };
        let index = match self.pick(&devices)? {
            Place::Cpu(note) => return Ok(cpu(note)),
            Place::Gpu(index) => index,
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
            "no GPU found, running on the CPU (`{}` is a software device; `--device gpu` uses it all the same)",
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

    fn pick(text: &str, devices: &[AdapterSummary]) -> Result<Place, String> {
        text.parse::<DeviceChoice>().unwrap().pick(devices).map_err(|error| error.to_string())
    }

    #[test]
    fn a_gpu_is_preferred_and_software_must_be_asked_for() {
        let (software, real) = (DeviceType::Cpu, DeviceType::Discrete);
        let both = [device("llvmpipe (LLVM 15)", software), device("NVIDIA H100", real)];
        assert_eq!(pick("auto", &both), Ok(Place::Gpu(1)));
        assert_eq!(pick("cpu", &both), Ok(Place::Cpu(None)));
        assert_eq!(pick("GPU", &both[..1]), Ok(Place::Gpu(0)));
        assert_eq!(pick("0", &both), Ok(Place::Gpu(0)));
        assert_eq!(pick("LLVM", &both), Ok(Place::Gpu(0)));
        let Ok(Place::Cpu(Some(why))) = pick("auto", &both[..1]) else { panic!("not the CPU") };
        assert!(why.contains("llvmpipe") && why.contains("no GPU"));
        assert_eq!(pick("Auto", &[]), Ok(Place::Cpu(Some("no GPU found, running on the CPU".into()))));
    }

    #[test]
    fn what_is_not_there_is_an_error_that_lists_what_is() {
        let devices = [device("llvmpipe", DeviceType::Cpu), device("NVIDIA H100", DeviceType::Discrete)];
        for choice in ["2", "radeon"] {
            let error = pick(choice, &devices).unwrap_err();
            assert!(error.contains(choice) && error.contains("0 llvmpipe, 1 NVIDIA H100"), "{error}");
        }
        assert!(pick("gpu", &[]).unwrap_err().contains("no GPU"));
    }

    #[test]
    fn a_choice_is_written_as_it_is_read() {
        for text in ["auto", "cpu", "gpu", "3", "Radeon RX"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }
}
