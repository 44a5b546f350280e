//! [`GptqConfig`]: the object `quantization_config` of config.json. quantize_config.json has the same content.

use serde_json::{Map, Value, json};

use super::rules::{Change, Rules, is_known_width};
use crate::{Error, Result, config_json::ConfigJson};

/// The object `quantization_config` of config.json. Field names are AutoGPTQ's, except `v2` and `rules`.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqConfig {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: usize,
    /// Inputs per scale. `None` for one scale per row (`-1` in the file).
    pub group_size: Option<usize>,
    /// Act-order: columns were quantized in descending order of the Hessian's diagonal.
    pub desc_act: bool,
    /// True if act-order kept the groups of the original column order, so that `g_idx` is `k / group_size`.
    pub static_groups: bool,
    /// True if the zero is fixed in the middle of the codes.
    pub sym: bool,
    /// True if each matrix was quantized with inputs computed by the already quantized matrices of its layer.
    pub true_sequential: bool,
    /// Damping: this share of the mean diagonal was added to the Hessian's diagonal.
    pub damp_percent: f64,
    /// True if zeros are stored unchanged (`gptq_v2`), false if minus one (`gptq`).
    pub v2: bool,
    /// True if lm_head is quantized.
    pub lm_head: bool,
    /// Modules with other settings, and modules that are not quantized (`dynamic` in the file).
    pub rules: Rules,
}

impl GptqConfig {
    /// Reads `quantization_config` from the content of config.json. `Ok(None)` if there is no such field.
    ///
    /// # Errors
    ///
    /// An error for another `quant_method` than `gptq`, and for missing or invalid fields.
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

    /// The configuration of a module, after applying the rules. A skipped module has the model's configuration; its
    /// tensors determine whether it is quantized.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if matching a pattern takes too long.
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

    /// The JSON object for `quantization_config` and quantize_config.json, in AutoGPTQ's order of fields.
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

    /// The numbers of rows and columns must be multiples of this, so that codes fill whole words.
    pub fn multiple(&self) -> usize {
        if self.bits == 3 { 32 } else { 32 / self.bits }
    }

    /// Number of groups in a row of `cols` inputs. The last group may be incomplete.
    pub fn groups(&self, cols: usize) -> usize {
        self.group_size.map_or(1, |size| cols.div_ceil(size))
    }

    /// `g_idx` of `cols` inputs without act-order, or with static groups: `k / group_size`.
    pub fn natural_g_idx(&self, cols: usize) -> Vec<u32> {
        (0..cols).map(|k| self.group_size.map_or(0, |size| (k / size) as u32)).collect()
    }
}
