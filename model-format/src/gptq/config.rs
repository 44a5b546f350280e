//! [`GptqConfig`]: `quantization_config` of config.json, which is also quantize_config.json.

use serde_json::{Map, Value, json};

use super::rules::{Change, Rules, is_known_width};
use crate::{Error, Result, config_json::ConfigJson};

/// `quantization_config` of config.json, which is also quantize_config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqConfig {
    /// Bits per code.
    pub bits: usize,
    /// Inputs per scale; `None` for the whole row (`-1` in the file).
    pub group_size: Option<usize>,
    /// Act-order: columns were quantized by falling Hessian diagonal.
    pub desc_act: bool,
    /// With act-order, scales belong to groups of the original order, so that `g_idx` stays `k / group_size`.
    pub static_groups: bool,
    /// Zero fixed in the middle of the codes.
    pub sym: bool,
    /// Each matrix was quantized with the inputs that the quantized ones before it in the layer give.
    pub true_sequential: bool,
    /// Share of the mean diagonal that was added to the Hessian's diagonal.
    pub damp_percent: f64,
    /// Whether zeros are stored as they are (`gptq_v2`) and not minus one.
    pub v2: bool,
    /// Whether lm_head is quantized too.
    pub lm_head: bool,
    /// Which modules are quantized otherwise, or not at all.
    pub rules: Rules,
}

impl GptqConfig {
    /// Reads config.json's `quantization_config`; `Ok(None)` where there is none. Another `quant_method` is an error.
    pub fn from_config(config_json: &str) -> Result<Option<GptqConfig>> {
        let config = ConfigJson::parse("config.json", config_json)?;
        match config.value.get("quantization_config") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let file = "config.json: quantization_config".to_owned();
                if !value.is_object() {
                    return Err(Error::Malformed { file, reason: "not a JSON object".into() });
                }
                GptqConfig::parse(&ConfigJson { file, value: value.clone() }).map(Some)
            }
        }
    }

    fn parse(config: &ConfigJson) -> Result<GptqConfig> {
        let bad = |field: &str, expected: &str, found: String| Error::BadField {
            file: config.file.clone(),
            field: field.into(),
            expected: expected.into(),
            found,
        };
        match config.str("quant_method")? {
            "gptq" => {}
            other => return Err(bad("quant_method", "`gptq`", other.into())),
        }
        let bits = config.usize("bits")?;
        if !is_known_width(bits) {
            return Err(bad("bits", "2, 3, 4 or 8", bits.to_string()));
        }
        let group_size = match config.value.get("group_size").and_then(Value::as_i64) {
            Some(-1) => None,
            _ => Some(config.usize("group_size")?),
        };
        if group_size == Some(0) {
            return Err(bad("group_size", "positive, or -1 for the whole row", "0".into()));
        }
        let format = match config.value.get("checkpoint_format") {
            None | Some(Value::Null) => "gptq",
            Some(_) => config.str("checkpoint_format")?,
        };
        let v2 = match format {
            "gptq" => false,
            "gptq_v2" => true,
            other => return Err(bad("checkpoint_format", "`gptq` or `gptq_v2`", other.into())),
        };
        Ok(GptqConfig {
            bits,
            group_size,
            desc_act: config.bool_or("desc_act", false)?,
            static_groups: config.bool_or("static_groups", false)?,
            sym: config.bool_or("sym", true)?,
            true_sequential: config.bool_or("true_sequential", true)?,
            damp_percent: config.f64_or("damp_percent", 0.01)?,
            v2,
            lm_head: config.bool_or("lm_head", false)?,
            rules: Rules::read(config)?,
        })
    }

    /// The configuration of one module, as its rules have it. Of one that is skipped it is that of the others: whether a
    /// module is quantized, its tensors say.
    pub fn of_module(&self, module: &str) -> Result<GptqConfig> {
        let base = GptqConfig { rules: Rules::default(), ..self.clone() };
        Ok(match self.rules.change_of(module)? {
            None | Some(Change::Skip) => base,
            Some(Change::Settings { bits, group_size, sym }) => GptqConfig {
                bits: bits.unwrap_or(base.bits),
                group_size: group_size.unwrap_or(base.group_size),
                sym: sym.unwrap_or(base.sym),
                ..base
            },
        })
    }

    /// The object for `quantization_config` and quantize_config.json, in the words of AutoGPTQ.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut fields = json!({
            "bits": self.bits,
            "group_size": self.group_size.map_or(json!(-1), |size| json!(size)),
            "desc_act": self.desc_act,
            "static_groups": self.static_groups,
            "sym": self.sym,
            "lm_head": self.lm_head,
            "damp_percent": self.damp_percent,
            "true_sequential": self.true_sequential,
            "model_name_or_path": "",
            "model_file_base_name": "model",
            "quant_method": "gptq",
            "checkpoint_format": if self.v2 { "gptq_v2" } else { "gptq" },
        });
        if !self.rules.0.is_empty() {
            fields["dynamic"] = self.rules.to_json();
        }
        let Value::Object(fields) = fields else { unreachable!("json! of an object") };
        fields
    }

    /// What the number of rows and that of columns must be a multiple of, so that codes fill whole words.
    pub fn multiple(&self) -> usize {
        if self.bits == 3 { 32 } else { 32 / self.bits }
    }

    /// Groups in a row of `cols` inputs; the last may be ragged.
    pub fn groups(&self, cols: usize) -> usize {
        self.group_size.map_or(1, |size| cols.div_ceil(size))
    }

    /// The group of each of `cols` inputs, without act-order or with static groups.
    pub fn natural_g_idx(&self, cols: usize) -> Vec<u32> {
        (0..cols).map(|k| self.group_size.map_or(0, |size| (k / size) as u32)).collect()
    }
}
