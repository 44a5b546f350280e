//! The list of `chat-cli devices`.

use infer_core::{AdapterSummary, DeviceType};
use serde_json::{Value, json};

use crate::report::table;

/// A device in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name from the driver.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `software` ...
    pub kind: String,
    /// True for a software GPU, which runs on the CPU.
    pub is_software: bool,
    /// Driver and version.
    pub driver: String,
    /// True if shaders can compute in f16.
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

/// The same as JSON.
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

    #[test]
    fn the_table_has_a_line_for_each_gpu_and_the_cpu() {
        let table = devices_table(&[device("NVIDIA H100", false)]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], "0       NVIDIA H100               discrete GPU  vulkan   yes  2.0 GiB     1.0");
        assert!(lines[2].starts_with("cpu"));
        assert_eq!(devices_json(&[device("a", true)])[0]["is_software"], true);
    }
}
