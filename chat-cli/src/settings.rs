//! Sampling settings by name: for `/set`.

use infer_core::SamplingParams;

use crate::{Error, Result};

/// A setting: its name, and how it is read and written. Reading returns whether the text was understood.
struct Setting {
    name: &'static str,
    set: fn(&mut SamplingParams, &str) -> Option<()>,
    show: fn(&SamplingParams) -> String,
}

/// `none` or nothing for a value that may be absent.
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

/// Changes `params` as `name=value` says; several are separated by `;`. All of them or none.
pub fn set(params: &mut SamplingParams, text: &str) -> Result<()> {
    let mut changed = params.clone();
    for assignment in text.split(';').filter(|part| !part.trim().is_empty()) {
        let Some((name, value)) = assignment.split_once('=') else {
            let message = format!("expected `name=value`, found: {}", assignment.trim());
            return Err(Error::Command { message, hint: "for example `/set temperature=0.5;max_tokens=100`".into() });
        };
        let (name, value) = (name.trim().replace('-', "_"), value.trim());
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            let names: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
            let hint = format!("settings: {}", names.join(" "));
            return Err(Error::Command { message: format!("unknown setting: `{name}`"), hint });
        };
        if (setting.set)(&mut changed, value).is_none() {
            let message = format!("`{name}` must be a number, found: {value}");
            return Err(Error::Command { message, hint: "`/set` alone shows the values of now".into() });
        }
    }
    changed.validate()?;
    *params = changed;
    Ok(())
}

/// All settings, one a line.
pub fn show(params: &SamplingParams) -> String {
    SETTINGS.iter().map(|setting| format!("  {:18}  {}\n", setting.name, (setting.show)(params))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_change_together_or_not_at_all() {
        let mut params = SamplingParams::default();
        set(&mut params, "temperature=0.5; top-k = 4;seed=23;stop=a,b").unwrap();
        assert_eq!((params.temperature, params.top_k, params.seed), (0.5, 4, Some(23)));
        assert_eq!(params.stop, ["a", "b"]);
        let before = params.clone();
        for bad in ["temperature", "temp=1", "top_k=0;temperature=-1", "top_p=0", "max_tokens=0", "seed=x", "min_p=NaN"]
        {
            assert!(set(&mut params, bad).is_err(), "{bad}");
            assert_eq!(params, before, "{bad}");
        }
        set(&mut params, "seed=none;max_tokens=;stop=").unwrap();
        assert_eq!((params.seed, params.max_tokens, params.stop.len()), (None, None, 0));
    }

    #[test]
    fn what_is_shown_can_be_set() {
        let mut params = SamplingParams { seed: Some(1), stop: vec!["x".into()], ..SamplingParams::default() };
        let text = show(&params).lines().map(|line| line.trim().replacen("  ", "=", 1)).collect::<Vec<_>>().join(";");
        let before = params.clone();
        set(&mut params, &text).unwrap();
        assert_eq!(params, before);
    }
}
