//! The report of measurements, in the form of llama.cpp's llama-bench: a table, JSON or CSV. [`Roofline`] adds the time of each
//! kernel, compared with the bandwidth of the device.

use std::fmt::Write;

use infer_core::{Checked, StepProfile};
use serde_json::{Value, json};

/// The measured model and its device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subject {
    /// Name of the model or shape.
    pub model: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of its weights on a GPU; `None` on the CPU.
    pub bytes: Option<u64>,
    /// Bytes of weights that a decoded token reads.
    pub bytes_per_token: Option<u64>,
    /// Device, interface and driver.
    pub device: [String; 3],
    /// Seconds from opening the files until the model is loaded.
    pub load_seconds: f64,
    /// Time of the kernel checks within that.
    pub checked: Option<Checked>,
    /// Seconds from opening the files to the first token.
    pub first_token_seconds: f64,
}

/// One measurement, repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Tokens of the prompt, for prefill; else 0.
    pub prompt: usize,
    /// Decoded tokens, for decode; else 0.
    pub decoded: usize,
    /// Tokens in the cache before each run.
    pub depth: usize,
    /// Seconds of each run.
    pub samples: Vec<f64>,
    /// Time of each kernel of a decoded token, if requested.
    pub roofline: Option<Roofline>,
}

/// Time of each kernel of a token, compared with the bandwidth of the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofline {
    /// Seconds per token on the host's clock.
    pub token_seconds: f64,
    /// Bandwidth of a copy on the device in bytes per second; bytes read and written both count.
    pub copy_bandwidth: f64,
    /// The measured kernels.
    pub profile: StepProfile,
}

/// Mean and standard deviation.
struct Spread {
    mean: f64,
    deviation: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Spread {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
        Spread { mean, deviation: if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 } }
    }
}

impl Test {
    fn tokens(&self) -> usize {
        self.prompt + self.decoded
    }

    /// `pp512`, `tg128 @ d2048`.
    fn name(&self) -> String {
        let name = if self.prompt > 0 { format!("pp{}", self.prompt) } else { format!("tg{}", self.decoded) };
        if self.depth > 0 { format!("{name} @ d{}", self.depth) } else { name }
    }

    fn rates(&self) -> impl Iterator<Item = f64> + Clone {
        self.samples.iter().map(|seconds| self.tokens() as f64 / seconds)
    }

    /// Mean seconds per token.
    pub fn token_seconds(&self) -> f64 {
        Spread::of(self.samples.iter().copied()).mean / self.tokens() as f64
    }
}

/// Estimated tokens per second at another bandwidth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// Bytes per second.
    pub bandwidth: f64,
    /// If each kernel reaches the same share of the bandwidth, and gaps and waits stay the same.
    pub as_measured: f64,
    /// If all bytes move at full bandwidth and nothing else takes time.
    pub limit: f64,
}

impl Roofline {
    fn kernel_seconds(&self) -> f64 {
        self.profile.kernels.iter().map(|kernel| kernel.seconds).sum()
    }

    /// GPU seconds of a token between kernels; `None` without timestamps.
    fn gaps(&self) -> Option<f64> {
        Some((self.profile.gpu_seconds? - self.kernel_seconds()).max(0.0))
    }

    /// Seconds of a token in which the GPU is idle.
    fn waiting(&self) -> Option<f64> {
        let busy = self.profile.gpu_seconds?.max(self.kernel_seconds());
        Some((self.token_seconds - busy).max(0.0))
    }

    /// Estimates speed with memory of another bandwidth, in bytes per second.
    pub fn at(&self, bandwidth: f64) -> Option<Projection> {
        let rest = self.gaps()? + self.waiting()?;
        let kernels = self.profile.kernels.iter().map(|kernel| {
            // Above the speed of a copy, data came from a cache, which another device may lack.
            let share = (kernel.bytes / kernel.seconds / self.copy_bandwidth).min(1.0);
            kernel.bytes / (share * bandwidth)
        });
        let bytes: f64 = self.profile.kernels.iter().map(|kernel| kernel.bytes).sum();
        Some(Projection { bandwidth, as_measured: 1.0 / (kernels.sum::<f64>() + rest), limit: bandwidth / bytes })
    }

    fn json(&self, at: Option<f64>) -> Value {
        let kernel = |kernel: &infer_core::KernelTime| {
            json!({
                "kernel": kernel.kernel, "shape": kernel.shape, "variant": kernel.variant, "runs": kernel.count,
                "bytes": kernel.bytes, "seconds": kernel.seconds,
                "share_of_copy": kernel.bytes / kernel.seconds / self.copy_bandwidth,
            })
        };
        let projection = at.and_then(|bandwidth| self.at(bandwidth)).map(|projection| {
            json!({
                "bytes_per_second": projection.bandwidth, "tokens_per_second_as_measured": projection.as_measured,
                "tokens_per_second_limit": projection.limit,
            })
        });
        json!({
            "token_seconds": self.token_seconds,
            "copy_bytes_per_second": self.copy_bandwidth,
            "host_seconds": self.profile.host_seconds,
            "gpu_seconds": self.profile.gpu_seconds,
            "kernel_seconds": self.profile.gpu_seconds.map(|_| self.kernel_seconds()),
            "gap_seconds": self.gaps(),
            "waiting_seconds": self.waiting(),
            "kernels": self.profile.kernels.iter().map(kernel).collect::<Vec<_>>(),
            "at": projection,
        })
    }

    fn markdown(&self, test: &str, at: Option<f64>) -> String {
        let (us, gb) = (1e6, 1e-9);
        let mut out = format!(
            "\n{test}, a token of {:.1} us; copies {:.1} GB/s",
            self.token_seconds * us,
            self.copy_bandwidth * gb
        );
        let _ = writeln!(out, " (read and written); the CPU records for {:.1} us\n", self.profile.host_seconds * us);
        let (Some(gaps), Some(waiting)) = (self.gaps(), self.waiting()) else {
            out.push_str("no kernel times: this device has no timestamps\n");
            return out;
        };
        out.push_str(
            "| kernel | shape | runs | MB | us | GB/s | of copy | of token |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
        );
        for kernel in &self.profile.kernels {
            let rate = kernel.bytes / kernel.seconds;
            let _ = writeln!(
                out,
                "| {} | {} | {:.0} | {:.2} | {:.1} | {:.1} | {:.1} % | {:.1} % |",
                kernel.kernel,
                kernel.shape,
                kernel.count,
                kernel.bytes * 1e-6,
                kernel.seconds * us,
                rate * gb,
                100.0 * rate / self.copy_bandwidth,
                100.0 * kernel.seconds / self.token_seconds,
            );
        }
        let part = |name: &str, seconds: f64| {
            format!("{name} {:.1} us ({:.1} %)", seconds * us, 100.0 * seconds / self.token_seconds)
        };
        let parts = [part("kernels", self.kernel_seconds()), part("between kernels", gaps), part("GPU idle", waiting)];
        let _ = writeln!(
            out,
            "\nkernel times cover all dispatches for one token, back to back in one pass; each waits for the previous one"
        );
        let _ = writeln!(out, "{}", parts.join(", "));
        if let Some(projection) = at.and_then(|bandwidth| self.at(bandwidth)) {
            let _ = writeln!(
                out,
                "at {:.0} GB/s: {:.1} tokens/s with the same shares, gaps and waits; limit {:.1} tokens/s",
                projection.bandwidth * gb,
                projection.as_measured,
                projection.limit
            );
        }
        out
    }
}

/// The commit that the program was built from.
fn commit() -> &'static str {
    option_env!("BUILD_COMMIT").unwrap_or("unknown")
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".into(), |bytes| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)))
}

/// A table in Markdown. `at` is the bandwidth to estimate for, in bytes per second.
pub fn markdown(subject: &Subject, tests: &[Test], at: Option<f64>) -> String {
    let mut out =
        String::from("| model | size | params | device | test | t/s | ms |\n|---|---:|---:|---|---|---:|---:|\n");
    let [device, backend, driver] = &subject.device;
    for test in tests {
        let (rate, seconds) = (Spread::of(test.rates()), Spread::of(test.samples.iter().copied()));
        let _ = writeln!(
            out,
            "| {} | {} | {:.2} M | {device} | {} | {:.2} ± {:.2} | {:.2} ± {:.2} |",
            subject.model,
            size(subject.bytes),
            subject.parameters as f64 * 1e-6,
            test.name(),
            rate.mean,
            rate.deviation,
            seconds.mean * 1e3,
            seconds.deviation * 1e3,
        );
    }
    let about = [device, backend, driver].into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>();
    let _ = writeln!(out, "\nbuild: {}; {}", commit(), about.join(", "));
    let _ = write!(out, "loaded in {:.2} s", subject.load_seconds);
    if let Some(Checked { cases, seconds }) = subject.checked.filter(|checked| checked.cases > 0) {
        let _ = write!(out, " ({cases} cases of kernels checked in {seconds:.2} s)");
    }
    let _ = write!(out, ", first token after {:.2} s", subject.first_token_seconds);
    if let Some(bytes) = subject.bytes_per_token {
        let _ = write!(out, "; a token reads {:.3} GB of weights", bytes as f64 * 1e-9);
    }
    out.push('\n');
    for test in tests {
        if let Some(roofline) = &test.roofline {
            out.push_str(&roofline.markdown(&test.name(), at));
        }
    }
    out
}

/// The fields of a measurement in the order of the CSV, with llama-bench's names where it has the field.
fn fields(subject: &Subject, test: &Test) -> Vec<(&'static str, Value)> {
    let (rate, seconds) = (Spread::of(test.rates()), Spread::of(test.samples.iter().copied()));
    let [device, backend, driver] = &subject.device;
    vec![
        ("build_commit", commit().into()),
        ("model_type", subject.model.as_str().into()),
        ("model_size", subject.bytes.into()),
        ("model_n_params", subject.parameters.into()),
        ("bytes_per_token", subject.bytes_per_token.into()),
        ("gpu_info", device.as_str().into()),
        ("backends", backend.as_str().into()),
        ("driver", driver.as_str().into()),
        ("load_s", subject.load_seconds.into()),
        ("selftest_s", subject.checked.map(|checked| checked.seconds).into()),
        ("selftest_cases", subject.checked.map(|checked| checked.cases).into()),
        ("load_to_first_token_s", subject.first_token_seconds.into()),
        ("n_prompt", test.prompt.into()),
        ("n_gen", test.decoded.into()),
        ("n_depth", test.depth.into()),
        ("avg_ns", (seconds.mean * 1e9).round().into()),
        ("stddev_ns", (seconds.deviation * 1e9).round().into()),
        ("avg_ts", rate.mean.into()),
        ("stddev_ts", rate.deviation.into()),
    ]
}

/// An array with an object for each measurement, samples included.
pub fn json(subject: &Subject, tests: &[Test], at: Option<f64>) -> Value {
    let object = |test: &Test| {
        let mut object: serde_json::Map<String, Value> =
            fields(subject, test).into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        let nanoseconds = test.samples.iter().map(|seconds| (seconds * 1e9).round());
        object.insert("samples_ns".into(), nanoseconds.collect::<Vec<_>>().into());
        object.insert("samples_ts".into(), test.rates().collect::<Vec<_>>().into());
        object.insert("roofline".into(), test.roofline.as_ref().map(|roofline| roofline.json(at)).into());
        Value::Object(object)
    };
    tests.iter().map(object).collect()
}

/// A line of names, then a line for each measurement.
pub fn csv(subject: &Subject, tests: &[Test]) -> String {
    let quoted = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => other.to_string(),
    };
    let mut out = String::new();
    for (i, test) in tests.iter().enumerate() {
        let fields = fields(subject, test);
        if i == 0 {
            let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            let _ = writeln!(out, "{}", names.join(","));
        }
        let _ = writeln!(out, "{}", fields.iter().map(|(_, value)| quoted(value)).collect::<Vec<_>>().join(","));
    }
    out
}

#[cfg(test)]
mod tests {
    use infer_core::KernelTime;

    use super::*;

    fn kernel(kernel: &'static str, bytes: f64, seconds: f64) -> KernelTime {
        KernelTime { kernel, shape: "rows 2".into(), variant: String::new(), count: 1.0, bytes, seconds }
    }

    fn subject() -> Subject {
        let device = ["a \"GPU\"", "vulkan", "1"].map(str::to_string);
        Subject { model: "m".into(), parameters: 5_000_000, bytes: Some(1 << 30), device, ..Subject::default() }
    }

    fn test() -> Test {
        let profile = StepProfile {
            depth: 0,
            host_seconds: 1e-4,
            gpu_seconds: Some(0.0035),
            kernels: vec![kernel("large", 1e6, 2e-3), kernel("cached", 1e6, 5e-4)],
        };
        let roofline = Roofline { token_seconds: 0.004, copy_bandwidth: 1e9, profile };
        Test { prompt: 0, decoded: 10, depth: 7, samples: vec![0.04, 0.05], roofline: Some(roofline) }
    }

    #[test]
    fn a_token_is_split_into_kernels_gaps_and_waits() {
        let roofline = test().roofline.unwrap();
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
        close(roofline.gaps().unwrap(), 1e-3);
        close(roofline.waiting().unwrap(), 5e-4);
        // At a tenth of the bandwidth: 20 ms for the first kernel, at half of it; 10 ms for the one faster than a copy.
        let projection = roofline.at(1e8).unwrap();
        close(projection.as_measured, 1.0 / (0.02 + 0.01 + 0.0015));
        close(projection.limit, 50.0);
        let without = StepProfile { gpu_seconds: None, kernels: Vec::new(), ..roofline.profile.clone() };
        let without = Roofline { profile: without, ..roofline };
        assert_eq!(without.at(1e8), None);
        assert!(without.markdown("tg1", None).contains("no timestamps"));
    }

    #[test]
    fn every_format_has_the_same_values() {
        // 250 and 200 tokens/s: mean 225, deviation 25 * sqrt(2).
        let table = markdown(&subject(), &[test()], Some(1e8));
        assert!(table.contains("| tg10 @ d7 | 225.00 ± 35.36 | 45.00 ± 7.07 |"), "{table}");
        assert!(table.contains("at 0 GB/s: 31.7 tokens/s"), "{table}");
        let json = json(&subject(), &[test()], None);
        assert_eq!((&json[0]["n_gen"], &json[0]["avg_ns"]), (&10.into(), &45e6.into()));
        assert_eq!(json[0]["samples_ns"], serde_json::json!([40e6, 50e6]));
        let csv = csv(&subject(), &[test(), test()]);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("build_commit,model_type") && lines[1].contains("\"a \"\"GPU\"\"\""), "{csv}");
    }
}
