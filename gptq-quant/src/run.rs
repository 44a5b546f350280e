//! [`Run`]: the fingerprint of a run. It covers everything that the result depends on, so that an interrupted run is continued only
//! by the same run.

use calib_data::TokenWindows;
use model_format::{staging::difference, steps, tensor_cache::ShardSum};
use serde_json::{Value, json};

use crate::settings::Settings;

/// The fingerprint of a run: the steps' algorithm numbers, model, calibration text, device and settings. Equal runs produce equal
/// bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Run(Value);

impl Run {
    /// `model`: the checksum of [`check_weights`](crate::check_weights). `text`: source and content of the windows. `device`: name and
    /// driver.
    pub fn new(model: &str, text: Value, device: impl Into<Value>, settings: &Settings) -> Run {
        let mut settings = serde_json::to_value(settings).expect("settings serialize");
        // Fingerprints have always included this former option. Without it, older runs could not be resumed.
        settings["matrix"]["gptq_py"] = false.into();
        let (steps, device): (Value, Value) = (steps::numbers(steps::QUANTIZE), device.into());
        Run(json!({ "steps": steps, "model": model, "text": text, "device": device, "settings": settings }))
    }

    /// The algorithm number of each step.
    pub(crate) fn steps(&self) -> &Value {
        &self.0["steps"]
    }

    /// The fingerprint as one line of JSON.
    pub(crate) fn line(&self) -> String {
        self.0.to_string()
    }

    /// A checksum of the fingerprint.
    pub(crate) fn id(&self) -> String {
        let mut sum = ShardSum::default();
        sum.update(self.line().as_bytes());
        sum.finish()
    }

    /// The first difference from the run with this `line`: the field, its value there and its value here.
    pub(crate) fn difference(&self, line: &str) -> Option<(String, String, String)> {
        let other = serde_json::from_str(line).unwrap_or(Value::Null);
        difference("", &other, &self.0)
    }
}

/// A checksum of the windows' tokens.
pub fn sum_of_windows(windows: &TokenWindows) -> String {
    let mut sum = ShardSum::default();
    for window in windows.iter() {
        window.iter().for_each(|token| sum.update(&token.to_le_bytes()));
    }
    sum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grid, Options};

    #[test]
    fn differences_name_the_field() {
        let settings = |bits| Settings::new(Options::new(Grid { bits, group_size: Some(32), sym: true }));
        let run = |model, bits| Run::new(model, json!({ "samples": 3 }), "the CPU", &settings(bits));
        let one = run("a", 4);
        assert_eq!(one.difference(&one.line()), None);
        let (name, was, is) = run("a", 3).difference(&one.line()).unwrap();
        assert_eq!((&name[..], &was[..], &is[..]), ("settings.matrix.grid.bits", "4", "3"));
        assert_eq!(run("b", 4).difference(&one.line()).unwrap().0, "model");
        assert!(one.difference("no JSON").is_some());
        assert!(!one.line().contains('\n'));
        let driver = |version: &str| json!({ "name": "a GPU", "driver": version });
        let on = |version| Run::new("a", Value::Null, driver(version), &settings(4));
        assert_eq!(on("2").difference(&on("1").line()).unwrap().0, "device.driver");
        assert_ne!(on("2").id(), on("1").id());
    }

    #[test]
    fn every_step_is_part_of_the_fingerprint() {
        let settings = Settings::new(Options::new(Grid { bits: 4, group_size: None, sym: true }));
        let run = Run::new("a", Value::Null, "the CPU", &settings);
        for step in steps::QUANTIZE {
            let mut older = run.clone();
            older.0["steps"][step.name] = (step.number - 1).into();
            assert_eq!(run.difference(&older.line()).unwrap().0, format!("steps.{}", step.name));
            assert_ne!(run.id(), older.id(), "{}", step.name);
        }
    }
}
