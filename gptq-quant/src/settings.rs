//! [`Settings`]: how to quantize a model, and the options that its rules give each parameter.
//!
//! The walk and the checkpoint writer share it, so that both agree on every parameter.

use model_format::{
    Checkpoint, DecoderConfig, Param, Role,
    gptq::{Change, GptqConfig, Rule, Rules},
    params::joined_params,
};
use serde::{Serialize, Serializer};

use crate::{
    error::{Error, Result},
    solve::{hessian::TokenWeight, options::Options},
};

/// Bytes for activations on a device of unknown memory.
pub(crate) const DEFAULT_ACTIVATION_MEMORY: usize = 4 << 30;

/// How to quantize a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Options of every matrix without a rule.
    pub matrix: Options,
    /// Solve each matrix with the inputs that the quantized matrices before it in the layer produce. If false, solve all with the
    /// inputs that the layer's float matrices produce.
    pub true_sequential: bool,
    /// The weight of each calibration token.
    pub token_weight: TokenWeight,
    /// Quantize the embedding table and the head too. Checkpoints store their dequantized values in f16.
    pub quantize_ends: bool,
    /// Quantize the head too. Checkpoints store its codes. Needs a head that is not the embedding table.
    pub lm_head: bool,
    /// Rules that give some matrices other options or skip them.
    #[serde(serialize_with = "as_written")]
    pub rules: Rules,
    /// Write version 2 of the checkpoint format.
    pub v2: bool,
    /// Bytes of activations that may stay on the device between two passes; `None` for all free memory. The rest of the hidden
    /// states goes to host memory, and inputs of `down_proj` that do not fit are computed twice.
    #[serde(skip)]
    pub activation_memory: Option<usize>,
}

impl Settings {
    /// The recommended settings with these options.
    pub fn new(matrix: Options) -> Settings {
        Settings {
            matrix,
            true_sequential: true,
            token_weight: TokenWeight::default(),
            quantize_ends: false,
            lm_head: false,
            rules: Rules::default(),
            v2: false,
            activation_memory: None,
        }
    }

    /// The options of `param`; `None` if it stays float. Errors: [`Error::UnequalParts`].
    pub fn options(&self, param: &Param) -> Result<Option<Options>> {
        let in_codes = match param.role {
            Role::LmHead if self.lm_head => true,
            Role::LmHead | Role::Embedding if self.quantize_ends => false,
            role if role.is_layer_matrix() => true,
            _ => return Ok(None),
        };
        let mut changes = Vec::with_capacity(param.sources.len());
        for source in &param.sources {
            changes.push(self.rules.change_of(source.module())?);
        }
        if changes.iter().any(|change| *change != changes[0]) {
            let modules: Vec<_> = param.sources.iter().map(|source| source.module().to_owned()).collect();
            return Err(Error::UnequalParts { modules });
        }
        // Checkpoints store these values in f16, so every value must be exact.
        let options = Options { values_in_f16: !in_codes, ..self.matrix };
        Ok(match changes[0] {
            None => Some(options),
            Some(Change::Skip) => None,
            Some(Change::Settings { bits, group_size, sym }) => {
                let mut grid = options.grid;
                grid.bits = bits.map_or(grid.bits, |bits| bits as u32);
                grid.group_size = group_size.unwrap_or(grid.group_size);
                grid.sym = sym.unwrap_or(grid.sym);
                Some(Options { grid, ..options })
            }
        })
    }

    /// Number of models that the text runs through: 1, or with drift correction 2, the float model being the second.
    pub(crate) fn streams(&self) -> usize {
        if self.matrix.gptaq_alpha == 0.0 { 1 } else { 2 }
    }

    /// The parameters outside layers to quantize, in order. The first is quantized for its outputs as the head: a table that is also
    /// the head, or the head. An embedding table after it is quantized for its values.
    pub(crate) fn end_roles(&self, config: &DecoderConfig) -> &'static [Role] {
        match self.quantize_ends || self.lm_head {
            false => &[],
            true if config.tie_word_embeddings => &[Role::Embedding],
            true => &[Role::LmHead, Role::Embedding],
        }
    }

    /// Checks the settings against a model. Errors: [`Error::TiedHead`], [`Error::RuleOfNothing`].
    pub fn check(&self, checkpoint: &dyn Checkpoint, config: &DecoderConfig) -> Result<()> {
        if self.lm_head && config.tie_word_embeddings {
            return Err(Error::TiedHead { location: checkpoint.location() });
        }
        for rule in &self.rules.0 {
            let list = joined_params(config);
            let mut modules = list.iter().filter(|p| p.role.is_matrix()).flat_map(|p| &p.sources);
            if !modules.try_fold(false, |found, source| Ok::<_, Error>(found || rule.matches(source.module())?))? {
                return Err(Error::RuleOfNothing { rule: rule.to_string() });
            }
        }
        Ok(())
    }

    /// The quantization config for config.json.
    pub fn gptq_config(&self, config: &DecoderConfig) -> Result<GptqConfig> {
        let Options { grid, act_order, static_groups, damp_percent, .. } = self.matrix;
        Ok(GptqConfig {
            bits: grid.bits as usize,
            group_size: grid.group_size,
            // Readers gather inputs by g_idx if this is set. Static groups need no gather.
            desc_act: act_order && !static_groups,
            static_groups,
            sym: grid.sym,
            true_sequential: self.true_sequential,
            damp_percent,
            v2: self.v2,
            lm_head: self.lm_head,
            rules: self.written_rules(config)?,
        })
    }

    /// The rules with one entry per matching module, by its whole name. Readers disagree about patterns, and GPTQModel matches
    /// skipping patterns against parts of names. vLLM looks up q, k and v, and gate and up, by the name of the joined matrix, so
    /// the joined name gets a rule too.
    fn written_rules(&self, config: &DecoderConfig) -> Result<Rules> {
        let mut rules = Vec::new();
        let list = joined_params(config);
        for param in list.iter().filter(|p| p.role.is_layer_matrix() || (p.role == Role::LmHead && self.lm_head)) {
            // `options` has checked that all parts have the same rule.
            let Some(change) = self.rules.change_of(param.sources[0].module())? else { continue };
            let joined = match param.sources.len() {
                1 => None,
                2 => Some("gate_up_proj"),
                _ => Some("qkv_proj"),
            };
            let parent = param.sources[0].module().rsplit_once('.').map_or("", |(parent, _)| parent);
            let joined = joined.map(|name| format!("{parent}.{name}"));
            let modules = param.sources.iter().map(|source| source.module().to_owned());
            rules.extend(modules.chain(joined).map(|module| Rule::exact(&module, change)));
        }
        Ok(Rules(rules))
    }
}

/// The parameters that [`quantize_layers`](crate::quantize_layers) quantizes, with their options.
pub fn quantized_params(config: &DecoderConfig, settings: &Settings) -> Result<Vec<(Param, Options)>> {
    let list = joined_params(config).into_iter();
    let chosen = list.map(|param| Ok(settings.options(&param)?.map(|options| (param, options))));
    chosen.filter_map(Result::transpose).collect()
}

fn as_written<S: Serializer>(rules: &Rules, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.0.iter().map(ToString::to_string))
}
