//! What `chat-cli bench` tells, in the form of llama.cpp's llama-bench: as a table, as JSON, as CSV. With it where the time
//! of a token goes, against what the device's memory could do.

use std::fmt::Write;

use infer_core::{Checked, StepProfile};
use serde_json::{Value, json};

/// What was measured, and on what.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subject {
    /// The model's name, or that of its shape.
    pub model: String,
    /// Its parameters.
    pub parameters: usize,
    /// Bytes of its weights on the device, where it is a GPU.
    pub bytes: Option<u64>,
    /// Of these, bytes that a decoded token reads.
    pub bytes_per_token: Option<u64>,
    /// The device, its interface and its driver.
    pub device: [String; 3],
    /// Seconds from opening the files until the model is loaded.
    pub load_seconds: f64,
    /// What of that the check of the kernels took.
    pub checked: Option<Checked>,
    /// Seconds from opening the files to the first token.
    pub first_token_seconds: f64,
}

/// One measurement, repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Tokens of the prompt, where prefill is measured.
    pub prompt: usize,
    /// Tokens decoded, where decoding is measured.
    pub decoded: usize,
    /// Tokens in the cache before.
    pub depth: usize,
    /// Seconds of each run.
    pub samples: Vec<f64>,
    /// Where a decoded token's time goes, where that was asked for.
    pub roofline: Option<Roofline>,
}

/// Where the time of a token goes, against what the device's memory could do.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofline {
    /// Seconds of a token, by the clock of who waits for it.
    pub token_seconds: f64,
    /// Bytes per second of a copy on the device, read and written.
    pub copy_bandwidth: f64,
    /// The token's work.
    pub profile: StepProfile,
}

/// How many of something there are, on average, and how far they are apart.
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

    /// Mean seconds of a token.
    pub fn token_seconds(&self) -> f64 {
        Spread::of(self.samples.iter().copied()).mean / self.tokens() as f64
    }
}

/// Tokens per second at some bandwidth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// Bytes per second.
    pub bandwidth: f64,
    /// If each kernel has the share of the bandwidth that it had here, and gaps and waiting take as long.
    pub as_measured: f64,
    /// If all bytes came at the full bandwidth and nothing else took time.
    pub limit: f64,
}

impl Roofline {
    fn kernel_seconds(&self) -> f64 {
        self.profile.kernels.iter().map(|kernel| kernel.seconds).sum()
    }

    /// Seconds of a token in which the device works on it: without timestamps unknown.
    fn gaps(&self) -> Option<f64> {
        Some((self.profile.gpu_seconds? - self.kernel_seconds()).max(0.0))
    }

    /// Seconds of a token in which the device does not work on it.
    fn waiting(&self) -> Option<f64> {
        let busy = self.profile.gpu_seconds?.max(self.kernel_seconds());
        Some((self.token_seconds - busy).max(0.0))
    }

    /// What the same work would give with memory of another bandwidth, in bytes per second.
    pub fn at(&self, bandwidth: f64) -> Option<Projection> {
        let rest = self.gaps()? + self.waiting()?;
        let kernels = self.profile.kernels.iter().map(|kernel| {
            // What came faster than a copy came from a cache that another device may not have.
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
            out.push_str("this device has no timestamps: nothing is known of its kernels\n");
            return out;
        };
        out.push_str(
            "| kernel | on | runs | MB | us | GB/s | of copy | of token |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
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
        let parts = [
            part("kernels", self.kernel_seconds()),
            part("between unlike ones", gaps),
            part("the device waits", waiting),
        ];
        let _ = writeln!(
            out,
            "\na kernel's time is that of all its runs for a token back to back in one pass, each after the one before is done"
        );
        let _ = writeln!(out, "{}", parts.join(", "));
        if let Some(projection) = at.and_then(|bandwidth| self.at(bandwidth)) {
            let _ = writeln!(
                out,
                "at {:.0} GB/s: {:.1} tokens/s with the same shares, gaps and waits; {:.1} tokens/s at most",
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

/// A table for documents. `at`: bytes per second to project to.
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

/// The fields of a measurement, in the order of the CSV; those that llama-bench has are called as there.
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

/// An array with an object for each measurement, its samples in it.
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

/// A line of names, and one for each measurement.
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
    fn a_tokens_time_is_divided() {
        let roofline = test().roofline.unwrap();
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
        close(roofline.gaps().unwrap(), 1e-3);
        close(roofline.waiting().unwrap(), 5e-4);
        // At a tenth of the bandwidth: 20 ms at the half of it that the first had, 10 ms for what was faster than a copy.
        let projection = roofline.at(1e8).unwrap();
        close(projection.as_measured, 1.0 / (0.02 + 0.01 + 0.0015));
        close(projection.limit, 50.0);
        let without = StepProfile { gpu_seconds: None, kernels: Vec::new(), ..roofline.profile.clone() };
        let without = Roofline { profile: without, ..roofline };
        assert_eq!(without.at(1e8), None);
        assert!(without.markdown("tg1", None).contains("no timestamps"));
    }

    #[test]
    fn every_form_tells_the_same() {
        // 250 and 200 tokens a second: 225, with a deviation of 25 times the root of two.
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
