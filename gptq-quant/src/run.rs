//! [`Run`]: everything that a result follows from, so that a run which was interrupted is not continued as another.

use calib_data::TokenWindows;
use model_format::tensor_cache::ShardSum;
use serde_json::{Value, json};

use crate::Settings;

/// What a run computes: program, model, calibration text, device and settings. Runs that are equal end in the same bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Run(Value);

impl Run {
    /// `model` is the sum of its content ([`check_weights`](crate::check_weights)), `text` says where the windows come
    /// from and what is in them.
    pub fn new(model: &str, text: Value, device: &str, settings: &Settings) -> Run {
        let settings = serde_json::to_value(settings).expect("settings serialize");
        let program = concat!("gptq-quant ", env!("CARGO_PKG_VERSION"));
        Run(json!({ "program": program, "model": model, "text": text, "device": device, "settings": settings }))
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

fn difference(name: &str, was: &Value, is: &Value) -> Option<(String, String, String)> {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let names = is.keys().chain(was.keys().filter(|name| !is.contains_key(*name)));
            names.into_iter().find_map(|field| {
                let value = |of: &serde_json::Map<String, Value>| of.get(field).cloned().unwrap_or_default();
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                difference(&name, &value(was), &value(is))
            })
        }
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            let pairs = was.iter().zip(is).enumerate();
            pairs.into_iter().find_map(|(i, (was, is))| difference(&format!("{name}.{i}"), was, is))
        }
        _ if was == is => None,
        _ => Some((name.to_owned(), was.to_string(), is.to_string())),
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
    }
}
