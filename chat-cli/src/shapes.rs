//! Shapes of published models (`shapes.json`). Random weights of a shape can be measured without a download.

use std::collections::BTreeMap;

use model_format::DecoderConfig;
use serde_json::Value;

use crate::{Error, Result};

/// The named shapes with their names, or all shapes if `names` is empty. Errors: there is no such shape.
pub fn chosen(names: &[String]) -> Result<Vec<(String, DecoderConfig)>> {
    let names = if names.is_empty() { all().into_keys().collect() } else { names.to_vec() };
    names.into_iter().map(|name| by_name(&name).map(|config| (name, config))).collect()
}

fn all() -> BTreeMap<String, Value> {
    serde_json::from_str(include_str!("../shapes.json")).expect("a file of ours")
}

/// The configuration of a named shape. Errors: there is no such shape.
pub fn by_name(name: &str) -> Result<DecoderConfig> {
    let shapes = all();
    let Some(json) = shapes.get(name) else {
        let hint = format!("shapes: {}", shapes.into_keys().collect::<Vec<_>>().join(", "));
        return Err(Error::Command { message: format!("unknown shape: `{name}`"), hint });
    };
    Ok(DecoderConfig::from_hf(&json.to_string()).map_err(infer_core::Error::from)?)
}

#[cfg(test)]
mod tests {
    use model_format::params;

    use super::*;

    /// 3.2127e9, 1.2358e9 and 134.5e6 parameters, as published.
    #[test]
    fn shapes_have_the_published_parameters() {
        let published = [
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.1-8b", 8_030_261_248),
            ("smollm2-135m", 134_515_008),
        ];
        for (name, expected) in published {
            let config = by_name(name).unwrap();
            let found: usize = params(&config).iter().map(|param| param.shape.iter().product::<usize>()).sum();
            assert_eq!(found, expected, "{name}");
        }
        let error = by_name("llama").unwrap_err();
        assert!(error.hint().unwrap().contains("llama-3.2-3b"), "{error}");
    }
}
