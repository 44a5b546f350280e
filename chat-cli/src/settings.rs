//! [`Settings`]: the sampling settings of a chat by name, with their origin. Used by flags and `/set`.

use infer_core::{ChatDefaults, Origin, SamplingParams};

use crate::{Error, Result};

/// A row of the table of settings. `set` returns `None` if the text is not valid.
struct Setting {
    name: &'static str,
    set: fn(&mut SamplingParams, &str) -> Option<()>,
    show: fn(&SamplingParams) -> String,
}

/// Parses an optional value: `none` or an empty text is absent.
fn optional<T: std::str::FromStr>(text: &str) -> Option<Option<T>> {
    match text {
        "" | "none" => Some(None),
        text => text.parse().ok().map(Some),
    }
}

fn or_none<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "none".into(), T::to_string)
}

const SETTINGS: &[Setting] = &[
    Setting {
        name: "temperature",
        set: |p, text| text.parse().ok().map(|v| p.temperature = v),
        show: |p| p.temperature.to_string(),
    },
    Setting { name: "top_p", set: |p, text| text.parse().ok().map(|v| p.top_p = v), show: |p| p.top_p.to_string() },
    Setting { name: "top_k", set: |p, text| text.parse().ok().map(|v| p.top_k = v), show: |p| p.top_k.to_string() },
    Setting { name: "min_p", set: |p, text| text.parse().ok().map(|v| p.min_p = v), show: |p| p.min_p.to_string() },
    Setting {
        name: "repetition_penalty",
        set: |p, text| text.parse().ok().map(|v| p.repetition_penalty = v),
        show: |p| p.repetition_penalty.to_string(),
    },
    Setting {
        name: "presence_penalty",
        set: |p, text| text.parse().ok().map(|v| p.presence_penalty = v),
        show: |p| p.presence_penalty.to_string(),
    },
    Setting {
        name: "frequency_penalty",
        set: |p, text| text.parse().ok().map(|v| p.frequency_penalty = v),
        show: |p| p.frequency_penalty.to_string(),
    },
    Setting { name: "seed", set: |p, text| optional(text).map(|v| p.seed = v), show: |p| or_none(&p.seed) },
    Setting {
        name: "max_tokens",
        set: |p, text| optional(text).map(|v| p.max_tokens = v),
        show: |p| or_none(&p.max_tokens),
    },
    Setting {
        name: "prompt_lookup",
        set: |p, text| text.parse().ok().map(|v| p.prompt_lookup = v),
        show: |p| p.prompt_lookup.to_string(),
    },
    Setting { name: "shift", set: |p, text| text.parse().ok().map(|v| p.shift = v), show: |p| p.shift.to_string() },
    Setting {
        name: "stop",
        set: |p, text| {
            p.stop = text.split(',').filter(|s| !s.is_empty() && *s != "none").map(str::to_string).collect();
            Some(())
        },
        show: |p| if p.stop.is_empty() { "none".into() } else { p.stop.join(",") },
    },
];

/// The settings of a chat, and the origin of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    params: SamplingParams,
    defaults: ChatDefaults,
    /// Names of the settings that the user chose.
    by_user: Vec<&'static str>,
}

impl Settings {
    /// The defaults with the user's choices applied. `change` applies them; `by_user` names the changed fields.
    pub fn new(
        defaults: &ChatDefaults,
        by_user: Vec<&'static str>,
        change: impl FnOnce(&mut SamplingParams),
    ) -> Result<Settings> {
        let mut params = defaults.params().clone();
        change(&mut params);
        params.validate()?;
        Ok(Settings { params, defaults: defaults.clone(), by_user })
    }

    /// The settings for the engine.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Applies assignments `name=value`, separated by `;`. Applies none if one is not valid.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let mut changed = self.clone();
        for assignment in text.split(';').filter(|part| !part.trim().is_empty()) {
            let Some((name, value)) = assignment.split_once('=') else {
                let message = format!("expected `name=value`, found: {}", assignment.trim());
                let hint = "for example `/set temperature=0.5;max_tokens=100`".into();
                return Err(Error::Command { message, hint });
            };
            let (name, value) = (name.trim().replace('-', "_"), value.trim());
            let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
                let names: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
                let hint = format!("settings: {}", names.join(" "));
                return Err(Error::Command { message: format!("unknown setting: `{name}`"), hint });
            };
            if (setting.set)(&mut changed.params, value).is_none() {
                let message = format!("`{name}` must be a number, found: {value}");
                return Err(Error::Command { message, hint: "`/set` alone shows the current values".into() });
            }
            if !changed.by_user.contains(&setting.name) {
                changed.by_user.push(setting.name);
            }
        }
        changed.params.validate()?;
        *self = changed;
        Ok(())
    }

    /// The origin of a setting, as a word.
    fn origin(&self, name: &str) -> &'static str {
        if self.by_user.contains(&name) {
            return "you";
        }
        match self.defaults.origin(name) {
            Origin::Model => "model",
            Origin::Program => "default",
        }
    }

    /// All settings, one per line: name, value, and origin (`you`, `model` for its files, or `default`).
    pub fn show(&self) -> String {
        let line = |setting: &Setting| {
            let (value, by) = ((setting.show)(&self.params), self.origin(setting.name));
            format!("  {:18}  {value:10}  {by}\n", setting.name)
        };
        SETTINGS.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(&ChatDefaults::default(), Vec::new(), |_| {}).unwrap()
    }

    #[test]
    fn settings_change_together_or_not_at_all() {
        let mut settings = settings();
        settings.set("temperature=0.5; top-k = 4;seed=23;stop=a,b").unwrap();
        let params = settings.params();
        assert_eq!((params.temperature, params.top_k, params.seed), (0.5, 4, Some(23)));
        assert_eq!(params.stop, ["a", "b"]);
        let before = settings.clone();
        for bad in ["temperature", "temp=1", "top_k=0;temperature=-1", "top_p=0", "max_tokens=0", "seed=x", "min_p=NaN"]
        {
            assert!(settings.set(bad).is_err(), "{bad}");
            assert_eq!(settings, before, "{bad}");
        }
        settings.set("seed=none;max_tokens=;stop=").unwrap();
        let params = settings.params();
        assert_eq!((params.seed, params.max_tokens, params.stop.len()), (None, None, 0));
    }

    #[test]
    fn shown_settings_can_be_set() {
        let mut settings = settings();
        settings.set("seed=1;stop=x").unwrap();
        let shown = settings.show();
        let lines = shown.lines().map(|line| line.trim().rsplit_once("  ").unwrap().0.replacen("  ", "=", 1));
        let text = lines.collect::<Vec<_>>().join(";");
        let before = settings.params().clone();
        settings.set(&text).unwrap();
        assert_eq!(*settings.params(), before);
    }

    #[test]
    fn each_setting_shows_its_origin() {
        let file = br#"{"temperature": 0.6, "top_p": 1.0}"#.to_vec();
        let defaults = ChatDefaults::from_files(&[("mlc-chat-config.json".into(), file)]);
        let mut settings = Settings::new(&defaults, vec!["max_tokens"], |p| p.max_tokens = Some(9)).unwrap();
        // The same value as the default is still the user's choice.
        settings.set("min-p=0.05").unwrap();
        let shown = settings.show();
        for (name, value, by) in [
            ("temperature", "0.6", "model"),
            ("top_p", "0.95", "default"),
            ("top_k", "0", "default"),
            ("min_p", "0.05", "you"),
            ("max_tokens", "9", "you"),
            ("seed", "none", "default"),
        ] {
            let line = format!("  {name:18}  {value:10}  {by}\n");
            assert!(shown.contains(&line), "{line:?} in {shown}");
        }
    }
}
