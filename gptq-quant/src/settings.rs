//! [`Settings`]: how a model is quantized, and what its options and rules make of each parameter.
//!
//! `pipeline.rs` and `checkpoint.rs` ask it, so that both do the same.

use model_format::{
    Checkpoint, DecoderConfig, Param, QuantFormat, Role,
    gptq::{Change, GptqConfig, Rule, Rules},
    params::joined_params,
};

use serde::{Serialize, Serializer};

use crate::{Error, Options, Result, TokenWeight};

/// How to quantize a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// How to quantize each matrix.
    pub matrix: Options,
    /// Whether a matrix of a layer is solved with the inputs that the quantized ones before it in the layer give; otherwise all
    /// with those that the layer's float matrices give.
    pub true_sequential: bool,
    /// How much each calibration token counts.
    pub token_weight: TokenWeight,
    /// Whether the embedding table and the head are quantized too. Checkpoints then hold them as numbers on the grid.
    pub quantize_ends: bool,
    /// Whether the head is quantized too, and checkpoints hold its codes. It must be no embedding table.
    pub lm_head: bool,
    /// Which matrices are quantized otherwise, or not at all.
    #[serde(serialize_with = "as_written")]
    pub rules: Rules,
    /// Whether checkpoints are of version 2 of the format.
    pub v2: bool,
    /// Bytes of activations that may stay on the device between two passes; `None` for what it has left. Beyond that,
    /// hidden states go to host memory and those of the feed-forward are computed twice.
    #[serde(skip)]
    pub activation_memory: Option<usize>,
}

impl Settings {
    /// What is best with these options.
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
}

impl Settings {
    /// How `param` is quantized; `None` where it is not.
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
        // Numbers of a table must be exact in f16, not only scales.
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

    /// Models that the text is run through: the one that is quantized so far, and where drift is corrected the float model too.
    pub(crate) fn streams(&self) -> usize {
        if self.matrix.gptaq_alpha == 0.0 { 1 } else { 2 }
    }

    /// Refuses what cannot be done to this model: a head that is not there, rules that are about nothing.
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

    /// The description of what is made of a model, for its config.json.
    pub fn gptq_config(&self, config: &DecoderConfig) -> Result<GptqConfig> {
        let Options { grid, act_order, static_groups, damp_percent, .. } = self.matrix;
        Ok(GptqConfig {
            bits: grid.bits as usize,
            group_size: grid.group_size,
            // Readers take this to mean that inputs must be gathered by g_idx. With static groups they need not be.
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

    /// The rules, one for each module that they are about, by its whole name: readers differ in what a pattern may be, and
    /// GPTQModel holds one that skips against parts of names too. vLLM asks for queries, keys and values, and for gate and
    /// up, by the name of the matrix that it joins them to, so that has a rule as well.
    fn written_rules(&self, config: &DecoderConfig) -> Result<Rules> {
        let mut rules = Vec::new();
        let list = joined_params(config);
        for param in list.iter().filter(|p| p.role.is_layer_matrix() || (p.role == Role::LmHead && self.lm_head)) {
            // `options` has seen that all parts are treated alike.
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

/// The matrices that [`quantize_layers`](crate::quantize_layers) quantizes.
pub fn quantized_params(config: &DecoderConfig, settings: &Settings) -> Result<Vec<(Param, Options)>> {
    let list = joined_params(config).into_iter();
    let chosen = list.map(|param| Ok(settings.options(&param)?.map(|options| (param, options))));
    chosen.filter_map(Result::transpose).collect()
}

fn as_written<S: Serializer>(rules: &Rules, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.0.iter().map(ToString::to_string))
}

impl Options {
    /// Whether every matrix that is quantized so converts into `format` without loss.
    pub fn converts_to(&self, format: &QuantFormat) -> bool {
        let Some(group) = format.group() else { return false };
        let Options { grid, act_order, static_groups, .. } = *self;
        let whole_groups = grid.group_size.is_none_or(|size| size.is_multiple_of(group.group_size));
        let in_order = static_groups || !act_order || grid.group_size.is_none();
        grid.sym && grid.bits <= group.bits as u32 && whole_groups && in_order
    }
}
