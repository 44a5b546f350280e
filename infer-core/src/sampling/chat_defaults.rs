//! [`ChatDefaults`]: the default settings of a chat: the model's recommendations, else ours.
//!
//! Flags and `/set` of `chat-cli`, and fields of a request in `web-chat`, override them. Each setting is independent, as in
//! llama.cpp and ollama: a model that recommends only a temperature gets our top-p and min-p. Measurements do not use them.

use serde_json::Value;

use super::sampler::SamplingParams;

/// The default settings of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatDefaults {
    params: SamplingParams,
    recommended: Vec<&'static str>,
}

/// The source of a default setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The model's files.
    Model,
    /// This program.
    Program,
}

/// A setting that a model's files may recommend. `name` is its name in the files and in [`SamplingParams`].
struct Recommendation {
    name: &'static str,
    set: fn(&mut SamplingParams, f64),
}

const RECOMMENDATIONS: [Recommendation; 7] = [
    Recommendation { name: "temperature", set: |p, v| p.temperature = v as f32 },
    Recommendation { name: "top_p", set: |p, v| p.top_p = v as f32 },
    Recommendation { name: "top_k", set: |p, v| p.top_k = v as usize },
    Recommendation { name: "min_p", set: |p, v| p.min_p = v as f32 },
    Recommendation { name: "repetition_penalty", set: |p, v| p.repetition_penalty = v as f32 },
    Recommendation { name: "presence_penalty", set: |p, v| p.presence_penalty = v as f32 },
    Recommendation { name: "frequency_penalty", set: |p, v| p.frequency_penalty = v as f32 },
];

/// The files with recommendations, by falling priority. The flag is true if a neutral value is no recommendation: MLC writes
/// neutral values if the checkpoint recommends nothing.
const FILES: [(&str, bool); 2] = [("mlc-chat-config.json", true), ("generation_config.json", false)];

impl Default for ChatDefaults {
    /// The defaults of a model without recommendations.
    fn default() -> ChatDefaults {
        let params = SamplingParams {
            temperature: 0.7,
            top_p: 0.95,
            min_p: 0.05,
            max_tokens: Some(2048),
            ..SamplingParams::default()
        };
        ChatDefaults { params, recommended: Vec::new() }
    }
}

impl ChatDefaults {
    /// The defaults of a model with these files (names and contents). Ignores values out of range.
    pub fn from_files(files: &[(String, Vec<u8>)]) -> ChatDefaults {
        let mut defaults = ChatDefaults::default();
        for (name, writes_neutral_values) in FILES {
            let content = files.iter().find(|(file, _)| file == name);
            let Some(config) = content.and_then(|(_, content)| serde_json::from_slice::<Value>(content).ok()) else {
                continue;
            };
            if config.get("do_sample") == Some(&Value::Bool(false)) {
                defaults.recommend("temperature", |p| p.temperature = 0.0, false);
            }
            for Recommendation { name, set } in RECOMMENDATIONS {
                if let Some(value) = config.get(name).and_then(Value::as_f64) {
                    defaults.recommend(name, |p| set(p, value), writes_neutral_values);
                }
            }
        }
        defaults
    }

    fn recommend(&mut self, name: &'static str, set: impl Fn(&mut SamplingParams), skips_neutral: bool) {
        let mut neutral = SamplingParams::default();
        set(&mut neutral);
        let changes_nothing = neutral == SamplingParams::default();
        if self.recommended.contains(&name) || neutral.validate().is_err() || (skips_neutral && changes_nothing) {
            return;
        }
        set(&mut self.params);
        self.recommended.push(name);
    }

    /// The settings.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The source of a setting, given the name of its field in [`SamplingParams`].
    pub fn origin(&self, name: &str) -> Origin {
        if self.recommended.contains(&name) { Origin::Model } else { Origin::Program }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(files: &[(&str, &str)]) -> ChatDefaults {
        let files: Vec<_> = files.iter().map(|(name, json)| (name.to_string(), json.as_bytes().to_vec())).collect();
        ChatDefaults::from_files(&files)
    }

    /// `expected`: temperature, top-p, top-k, min-p and repetition penalty. `of_the_model`: the recommended settings.
    fn check(files: &[(&str, &str)], expected: (f32, f32, usize, f32, f32), of_the_model: &[&str]) {
        let defaults = defaults(files);
        let p = defaults.params();
        assert_eq!((p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty), expected, "{files:?}");
        assert_eq!(p.max_tokens, Some(2048));
        let names = RECOMMENDATIONS.map(|recommendation| recommendation.name);
        let found: Vec<&str> = names.into_iter().filter(|name| defaults.origin(name) == Origin::Model).collect();
        assert_eq!(found, of_the_model, "{files:?}");
    }

    const OURS: (f32, f32, usize, f32, f32) = (0.7, 0.95, 0, 0.05, 1.0);

    #[test]
    fn a_model_without_recommendations_gets_our_defaults() {
        check(&[], OURS, &[]);
        check(&[("generation_config.json", r#"{"eos_token_id": 2}"#)], OURS, &[]);
        check(&[("generation_config.json", "broken")], OURS, &[]);
        // mlc_llm 0.20 writes this for a checkpoint without recommendations.
        let neutral = r#"{"temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
            "top_p": 1.0}"#;
        check(&[("mlc-chat-config.json", neutral)], OURS, &[]);
    }

    #[test]
    fn each_recommended_setting_is_independent() {
        let mlc = r#"{"temperature": 0.6, "top_p": 1.0, "repetition_penalty": 1.05, "presence_penalty": 7}"#;
        let expected = (0.6, 0.95, 0, 0.05, 1.05);
        check(&[("mlc-chat-config.json", mlc)], expected, &["temperature", "repetition_penalty"]);
        let hf = r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": "high", "min_p": -1}"#;
        check(&[("generation_config.json", hf)], (0.7, 0.95, 20, 0.05, 1.0), &["temperature", "top_k"]);
        // Neutral values in generation_config.json are recommendations: no tool writes them by itself.
        let explicit = r#"{"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}"#;
        check(&[("generation_config.json", explicit)], (1.0, 1.0, 0, 0.0, 1.0), &["temperature", "top_p", "min_p"]);
        let greedy = r#"{"do_sample": false, "temperature": 0.9}"#;
        check(&[("generation_config.json", greedy)], (0.0, 0.95, 0, 0.05, 1.0), &["temperature"]);
    }

    #[test]
    fn the_first_file_that_recommends_a_setting_wins() {
        let mlc = ("mlc-chat-config.json", r#"{"temperature": 1.0, "top_p": 0.9}"#);
        let hf = ("generation_config.json", r#"{"temperature": 0.3, "top_p": 0.8}"#);
        check(&[hf, mlc], (0.3, 0.9, 0, 0.05, 1.0), &["temperature", "top_p"]);
    }
}
