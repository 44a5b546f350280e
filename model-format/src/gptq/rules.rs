//! [`Rules`]: the field `dynamic` of a GPTQ configuration. It gives some modules other settings, or excludes them from
//! quantization.
//!
//! GPTQModel writes this field; GPTQModel and vLLM read it. Patterns are Python regular expressions that must match at
//! the start of a module's name. The first match decides.

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::{Error, Result, config_json::ConfigJson};

/// The effect of a rule on a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Do not quantize the module.
    Skip,
    /// Override settings of the model. `None` keeps a setting.
    Settings {
        /// Bits per code.
        bits: Option<usize>,
        /// Inputs per scale. The inner `None` is one scale per row.
        group_size: Option<Option<usize>>,
        /// True for a zero fixed in the middle of the codes.
        sym: Option<bool>,
    },
}

/// A pattern, and its effect on matching modules.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The original pattern.
    pattern: String,
    regex: Regex,
    change: Change,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Rule) -> bool {
        (&self.pattern, self.change) == (&other.pattern, other.change)
    }
}

impl Rule {
    /// A rule for the modules whose names match `pattern` at the start. The error is the fault of the pattern.
    pub fn new(pattern: &str, change: Change) -> Result<Rule, String> {
        // Like Python's `re.match`: anchored at the start of the name only.
        let regex = Regex::new(&format!(r"\A(?:{pattern})")).map_err(|error| format!("`{pattern}`: {error}"))?;
        Ok(Rule { pattern: pattern.into(), regex, change })
    }

    /// A rule for the module with exactly this name.
    pub fn exact(module: &str, change: Change) -> Rule {
        let pattern = format!("^{}$", fancy_regex::escape(module));
        Rule::new(&pattern, change).expect("an escaped name is a valid pattern")
    }

    /// Parses `PATTERN:skip` or `PATTERN:bits=8,group=32,sym=false`. The error is the fault of the text.
    pub fn parse(text: &str) -> Result<Rule, String> {
        let (pattern, settings) = text.rsplit_once(':').ok_or("it has no `:` between pattern and settings")?;
        if settings == "skip" {
            return Rule::new(pattern, Change::Skip);
        }
        let (mut bits, mut group_size, mut sym) = (None, None, None);
        for setting in settings.split(',') {
            let wrong = || format!("`{setting}` is not `skip`, `bits=N`, `group=N` or `sym=BOOL`");
            let (name, value) = setting.split_once('=').ok_or_else(wrong)?;
            match (name, value) {
                ("bits", _) => bits = value.parse().ok().filter(|bits| is_known_width(*bits)),
                ("group" | "group_size", "-1") => group_size = Some(None),
                ("group" | "group_size", _) => group_size = value.parse().ok().filter(|&size| size > 0).map(Some),
                ("sym", _) => sym = value.parse().ok(),
                _ => return Err(wrong()),
            }
            let is_valid = match name {
                "bits" => bits.is_some(),
                "sym" => sym.is_some(),
                _ => group_size.is_some(),
            };
            if !is_valid {
                return Err(format!("`{value}` cannot be the value of `{name}`"));
            }
        }
        Rule::new(pattern, Change::Settings { bits, group_size, sym })
    }

    /// The effect on matching modules.
    pub fn change(&self) -> Change {
        self.change
    }

    /// True if the pattern matches `module`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if matching takes too long.
    pub fn matches(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|error| Error::Malformed {
            file: "dynamic".into(),
            reason: format!("`{}` cannot be matched with `{module}`: {error}", self.pattern),
        })
    }
}

/// The syntax of [`Rule::parse`].
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Change::Settings { bits, group_size, sym } = self.change else {
            return write!(f, "{}:skip", self.pattern);
        };
        let bits = bits.map(|bits| format!("bits={bits}"));
        let group = group_size.map(|size| size.map_or("group=-1".into(), |size| format!("group={size}")));
        let settings = [bits, group, sym.map(|sym| format!("sym={sym}"))];
        write!(f, "{}:{}", self.pattern, settings.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

/// The rules of a configuration, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The effect of the first rule that matches `module`. `None` if no rule matches.
    ///
    /// # Errors
    ///
    /// As [`Rule::matches`].
    pub fn change_of(&self, module: &str) -> Result<Option<Change>> {
        for rule in &self.0 {
            if rule.matches(module)? {
                return Ok(Some(rule.change));
            }
        }
        Ok(None)
    }

    /// Reads the field `dynamic`. No rules if it is missing.
    pub(super) fn read(config: &ConfigJson) -> Result<Rules> {
        let malformed = |reason: String| Error::Malformed { file: format!("{}: dynamic", config.file), reason };
        let fields = match config.value.get("dynamic") {
            None | Some(Value::Null) => return Ok(Rules::default()),
            Some(Value::Object(fields)) => fields,
            Some(_) => return Err(malformed("not a JSON object".into())),
        };
        let rule = |(pattern, value): (&String, &Value)| {
            let change = match pattern.strip_prefix("-:") {
                Some(_) => Change::Skip,
                None => settings(value).map_err(|field| malformed(format!("`{pattern}` has an invalid `{field}`")))?,
            };
            let pattern = pattern.strip_prefix("-:").or(pattern.strip_prefix("+:")).unwrap_or(pattern);
            Rule::new(pattern, change).map_err(malformed)
        };
        Ok(Rules(fields.iter().map(rule).collect::<Result<_>>()?))
    }

    /// The JSON object for `dynamic`.
    pub(super) fn to_json(&self) -> Value {
        let entry = |rule: &Rule| {
            let Change::Settings { bits, group_size, sym } = rule.change else {
                return (format!("-:{}", rule.pattern), Value::Object(Map::new()));
            };
            let group_size = group_size.map(|size| size.map_or(Value::from(-1), Value::from));
            let fields = [("bits", bits.map(Value::from)), ("group_size", group_size), ("sym", sym.map(Value::from))];
            let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            (format!("+:{}", rule.pattern), Value::Object(fields.collect()))
        };
        Value::Object(self.0.iter().map(entry).collect())
    }
}

/// True for a supported number of bits per code.
pub(super) fn is_known_width(bits: usize) -> bool {
    matches!(bits, 2 | 3 | 4 | 8)
}

/// The settings of a rule in JSON. Ignores settings that only matter to quantizers. The error is the name of an invalid
/// field.
fn settings(value: &Value) -> Result<Change, &'static str> {
    let number = |name: &'static str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_i64().ok_or(name).map(Some),
    };
    let bits = number("bits")?.map(|bits| usize::try_from(bits).ok().filter(|&b| is_known_width(b)).ok_or("bits"));
    let group_size = number("group_size")?.map(|size| match usize::try_from(size) {
        _ if size == -1 => Ok(None),
        Ok(size) if size > 0 => Ok(Some(size)),
        _ => Err("group_size"),
    });
    let sym = match value.get("sym") {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_bool().ok_or("sym")?),
    };
    Ok(Change::Settings { bits: bits.transpose()?, group_size: group_size.transpose()?, sym })
}
