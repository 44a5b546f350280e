//! [`params`]: the complete list of a decoder's parameters.
//!
//! This is the only such list: the converter writes it, the engine loads it, and the quantizer walks it.

use crate::{DecoderConfig, Role, arch::Named};

/// A parameter: its MLC name, function, shape and checkpoint tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// MLC's name, ending in `.weight` or `.bias`.
    pub name: String,
    /// Function in the decoder.
    pub role: Role,
    /// Dimensions, outermost first: `[n, k]` for a matrix with `n` outputs and `k` inputs, `[n]` for a norm.
    pub shape: Vec<usize>,
    /// Checkpoint tensors, joined by rows in this order.
    pub sources: Vec<Source>,
    /// True if one is added to the checkpoint's values, as for the norms of some families.
    pub adds_one: bool,
}

/// A checkpoint tensor that forms a [`Param`] or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Checkpoint name, ending in `.weight` or `.bias`.
    pub name: String,
    /// Number of rows (its first dimension).
    pub rows: usize,
}

impl Source {
    /// The module: the tensor's name without the last part. GPTQ's tensors of a matrix are `MODULE.qweight` and so on.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').expect("sources are parts of modules").0
    }
}

/// All parameters of a decoder, in the order of the forward pass.
pub fn params(config: &DecoderConfig) -> Vec<Param> {
    let names = &config.architecture().names;
    let mut list = Vec::new();
    let mut add = |role, layer: Option<usize>, named: Named| {
        let Some(shape) = shape(config, role) else { return };
        let [mlc, source] = match layer {
            Some(i) => [format!("{}.{i}.", names.layers.mlc), format!("{}.{i}.", names.layers.sources[0])],
            None => [String::new(), String::new()],
        };
        let rows = part_rows(config, role, named.sources.len(), shape[0]);
        let sources =
            named.sources.iter().zip(rows).map(|(name, rows)| Source { name: format!("{source}{name}"), rows });
        let adds_one = role.is_norm() && config.architecture().norm_adds_one;
        let name = format!("{mlc}{}", named.mlc);
        list.push(Param { name, role, shape, sources: sources.collect(), adds_one });
    };
    add(Role::Embedding, None, names.embedding);
    for i in 0..config.num_hidden_layers {
        for (role, named) in names.layer {
            add(role(i), Some(i), *named);
        }
    }
    add(Role::FinalNorm, None, names.final_norm);
    add(Role::LmHead, None, names.lm_head);
    list
}

/// [`params`], with separate query, key and value projections joined by rows to one matrix. The forward pass multiplies
/// by the joined matrix, also for families that MLC stores separately.
pub fn joined_params(config: &DecoderConfig) -> Vec<Param> {
    let mut list: Vec<Param> = Vec::new();
    for param in params(config) {
        match (param.role, list.last_mut()) {
            (Role::Query(i), _) => {
                list.push(Param { role: Role::Qkv(i), name: param.name.replace("q_proj", "qkv_proj"), ..param });
            }
            (Role::Key(_) | Role::Value(_), Some(whole)) => {
                whole.shape[0] += param.shape[0];
                whole.sources.extend(param.sources);
            }
            _ => list.push(param),
        }
    }
    list
}

/// The shape of the parameter with this role. `None` if the configuration has no such parameter.
fn shape(config: &DecoderConfig, role: Role) -> Option<Vec<usize>> {
    let hidden = config.hidden_size;
    let query = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    Some(match role {
        Role::LmHead if config.tie_word_embeddings => return None,
        Role::Embedding | Role::LmHead => vec![config.vocab_size, hidden],
        Role::Qkv(_) => vec![query + 2 * kv, hidden],
        Role::QkvBias(_) if !config.qkv_bias => return None,
        Role::QkvBias(_) => vec![query + 2 * kv],
        Role::Query(_) => vec![query, hidden],
        Role::Key(_) | Role::Value(_) => vec![kv, hidden],
        Role::QueryNorm(_) | Role::KeyNorm(_) => vec![config.head_dim],
        Role::AttentionOut(_) => vec![hidden, query],
        Role::AttentionOutBias(_) if !config.attention_out_bias => return None,
        Role::GateUp(_) => vec![2 * config.intermediate_size, hidden],
        Role::Down(_) => vec![hidden, config.intermediate_size],
        Role::AttentionOutBias(_)
        | Role::InputNorm(_)
        | Role::AttentionOutNorm(_)
        | Role::PostAttentionNorm(_)
        | Role::DownNorm(_)
        | Role::FinalNorm => vec![hidden],
    })
}

/// Rows of each of the `parts` checkpoint tensors of a parameter with `rows` rows.
fn part_rows(config: &DecoderConfig, role: Role, parts: usize, rows: usize) -> Vec<usize> {
    let query = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    match (role, parts) {
        (_, 1) => vec![rows],
        (Role::Qkv(_) | Role::QkvBias(_), 3) => vec![query, kv, kv],
        (Role::GateUp(_), 2) => vec![config.intermediate_size; 2],
        _ => panic!("{role:?} cannot have {parts} checkpoint tensors"),
    }
}
