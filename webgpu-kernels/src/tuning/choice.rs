//! [`Choice`]: the tuned parameters of a kernel, one type per kernel family. Field names are those of `presets.json` and of a
//! user's `tuning.json`.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Declares [`Choice`] with the conversions from and to each of its types.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident($kind:ty)),* $(,)?) => {
        /// Tuned parameters of a kernel.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[serde(untagged)]
        pub enum Choice {
            $($(#[$doc])* $name($kind)),*
        }

        $(
            impl From<$kind> for Choice {
                fn from(choice: $kind) -> Choice {
                    Choice::$name(choice)
                }
            }

            impl TryFrom<Choice> for $kind {
                type Error = Choice;

                fn try_from(choice: Choice) -> Result<$kind, Choice> {
                    if let Choice::$name(choice) = choice { Ok(choice) } else { Err(choice) }
                }
            }
        )*
    };
}

choices! {
    /// `gemv`, `gemv_add`, `gemv_scaled`, `gemv_rope`.
    Gemv(GemvChoice),
    /// `gemv_chain`.
    GemvChain(GemvChainChoice),
    /// `gemm`.
    Gemm(GemmChoice),
    /// `gemm_splits`.
    GemmSplits(GemmSplitsChoice),
    /// `gemm_cooperative`.
    GemmCooperative(GemmCooperativeChoice),
    /// `gemm_few`.
    GemmFew(GemmFewChoice),
    /// `attention_decode`.
    AttentionDecode(AttentionDecodeChoice),
    /// `attention_tile`.
    AttentionTile(AttentionTileChoice),
}

/// How a matrix-vector product is divided among lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct GemvChoice {
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// Blocks of each row that a lane loads before it uses the first.
    pub steps: u32,
    /// Matrix rows of a team. A multiple of two where two rows make one output, of four where two outputs make one word.
    pub rows: u32,
    /// Lanes that share a group of weights, 1, 2 or 4. Each lane's share is one block.
    pub lanes_per_group: u32,
    /// The team of lanes that computes `rows` rows.
    pub team: Team,
    /// True if workgroup memory holds a copy of `x`.
    pub shared_x: bool,
    /// True if codes are multiplied as integers, with `x` in fixed point.
    pub integer: bool,
}

/// Lanes that compute the same rows and add up their partial sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Team {
    /// As many lanes as the device's smallest subgroup. Needs no barrier.
    Subgroup,
    /// All lanes of the workgroup.
    Workgroup,
}

/// Whether the products between two attentions run as one dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct GemvChainChoice {
    /// `None`: one dispatch per product.
    pub chain: Option<ChainChoice>,
}

/// How the work of a chain is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct ChainChoice {
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// Rows that a workgroup computes at a time if a lane has one half group of each: 4 or 8.
    pub rows: u32,
    /// Most workgroups of a product.
    pub groups: u32,
    /// Keys per range when attention is split along the keys.
    pub range: u32,
}

/// The tile of `gemm`, whose workgroups have 8 x 8 lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct GemmChoice {
    /// Rows of `x` per lane.
    pub lane_m: u32,
    /// Rows of the matrix per lane.
    pub lane_n: u32,
}

/// Split-K of `gemm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct GemmSplitsChoice {
    /// Ranges of the inputs that are summed separately.
    pub splits: u32,
}

/// The tile of `gemm_cooperative`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct GemmCooperativeChoice {
    /// Subgroups of a workgroup along the rows of `x`.
    pub warps_m: u32,
    /// Subgroups of a workgroup along the rows of the matrix.
    pub warps_n: u32,
    /// Fragments of 16 x 16 outputs per subgroup, along the rows of `x`.
    pub frags_m: u32,
    /// Fragments of 16 x 16 outputs per subgroup, along the rows of the matrix.
    pub frags_n: u32,
}

/// The tile of `gemm_few`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct GemmFewChoice {
    /// Subgroups along the rows of `x`, of those that share a range of inputs.
    pub warps_m: u32,
    /// Subgroups along the rows of the matrix, of those that share a range of inputs.
    pub warps_n: u32,
    /// Fragments of 16 x 16 outputs per subgroup, along the rows of the matrix.
    pub frags_n: u32,
    /// Blocks of each row that are multiplied at a time.
    pub step_blocks: u32,
    /// Steps whose values a lane loads before it uses the first.
    pub depth: u32,
}

/// The kernel of attention for few rows, and its split-K.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct AttentionDecodeChoice {
    /// Split the keys until this many workgroups run.
    pub groups: u32,
    /// The parameters of `attention_teams`. `None`: `attention_decode`.
    pub teams: Option<Teams>,
}

/// Parameters of `attention_teams`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Teams {
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// Query heads of a workgroup, all of which share a key head.
    pub heads: u32,
    /// Keys that a team loads at a time.
    pub keys: u32,
}

/// The tile of `attention_tile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct AttentionTileChoice {
    /// Slots of a lane. A slot is one query row of one head.
    pub slots: u32,
}

impl Choice {
    /// The parameters by name, as files store them.
    pub fn fields(&self) -> Value {
        serde_json::to_value(self).expect("structs of numbers are valid JSON")
    }

    /// The parameters as the type of their kernel family. Panics if they belong to another one.
    pub(crate) fn get<T: TryFrom<Choice, Error = Choice>>(self) -> T {
        T::try_from(self).unwrap_or_else(|choice| panic!("{choice:?} belongs to another kernel"))
    }
}

impl fmt::Display for Choice {
    /// `workgroup 96, steps 2, integer`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words(&self.fields()))
    }
}

/// Fields in words. A condition that is false is left out.
fn words(fields: &Value) -> String {
    let field = |(name, value): (&String, &Value)| match value {
        Value::Bool(false) => None,
        Value::Bool(true) => Some(name.clone()),
        Value::Null => Some(format!("no {name}")),
        Value::Object(_) => Some(format!("{name} ({})", words(value))),
        Value::String(word) => Some(format!("{name} {word}")),
        number => Some(format!("{name} {number}")),
    };
    fields.as_object().into_iter().flatten().filter_map(field).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(choice: impl Into<Choice>, fields: &str, words: &str) {
        let choice = choice.into();
        assert_eq!((choice.fields().to_string().as_str(), choice.to_string().as_str()), (fields, words));
    }

    #[test]
    fn fields_have_names_in_files_and_in_tables() {
        let gemv = GemvChoice {
            workgroup: 64,
            steps: 1,
            rows: 8,
            lanes_per_group: 2,
            team: Team::Workgroup,
            shared_x: false,
            integer: true,
        };
        check(
            gemv,
            r#"{"workgroup":64,"steps":1,"rows":8,"lanes_per_group":2,"team":"workgroup","shared_x":false,"integer":true}"#,
            "workgroup 64, steps 1, rows 8, lanes_per_group 2, team workgroup, integer",
        );
        check(GemvChainChoice { chain: None }, r#"{"chain":null}"#, "no chain");
        let teams = Some(Teams { workgroup: 256, heads: 3, keys: 4 });
        check(
            AttentionDecodeChoice { groups: 64, teams },
            r#"{"groups":64,"teams":{"workgroup":256,"heads":3,"keys":4}}"#,
            "groups 64, teams (workgroup 256, heads 3, keys 4)",
        );
    }
}
