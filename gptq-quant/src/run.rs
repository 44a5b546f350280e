//! [`Run`]: everything that a result follows from, so that a run which was interrupted is not continued as another.

use calib_data::TokenWindows;
use model_format::{staging::difference, steps, tensor_cache::ShardSum};
use serde_json::{Value, json};

use crate::Settings;

/// What a run computes: the steps' algorithm numbers, model, calibration text, device and settings. Runs that are equal end in the same bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Run(Value);

impl Run {
    /// `model` is the sum of its content ([`check_weights`](crate::check_weights)), `text` says where the windows come
    /// from and what is in them, `device` what computes and by which driver.
    pub fn new(model: &str, text: Value, device: impl Into<Value>, settings: &Settings) -> Run {
        let settings = serde_json::to_value(settings).expect("settings serialize");
        let (steps, device): (Value, Value) = (steps::numbers(steps::QUANTIZE), device.into());
        Run(json!({ "steps": steps, "model": model, "text": text, "device": device, "settings": settings }))
    }

    /// The algorithm number of each step.
    pub(crate) fn steps(&self) -> &Value {
        &self.0["steps"]
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        self.0.to_string()
    }

    /// A short name for it.
    pub(crate) fn id(&self) -> String {
        let mut sum = ShardSum::default();
        sum.update(self.line().as_bytes());
        sum.finish()
    }

    /// The first thing in which the run with this line is another: its name, what it was and what it is.
    pub(crate) fn difference(&self, line: &str) -> Option<(String, String, String)> {
        let other = serde_json::from_str(line).unwrap_or(Value::Null);
        difference("", &other, &self.0)
    }
}

/// The sum of windows.
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
    fn what_differs_is_named() {
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
    fn every_step_counts() {
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
