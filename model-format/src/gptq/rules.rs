//! [`Rules`]: `dynamic` of a GPTQ configuration, by which modules are quantized otherwise than the rest, or not at all.
//!
//! GPTQModel writes it, vLLM reads it too. Patterns are regular expressions of Python, matched from the beginning of a
//! module's name; the first that matches decides.

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::{Error, Result, config_json::ConfigJson};

/// What a rule says of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is not quantized.
    Skip,
    /// These are other than in the rest of the model.
    Settings {
        /// Bits per code.
        bits: Option<usize>,
        /// Inputs per scale; the inner `None` for the whole row.
        group_size: Option<Option<usize>>,
        /// Zero fixed in the middle of the codes.
        sym: Option<bool>,
    },
}

/// A pattern, and what it means for the modules that it matches.
#[derive(Debug, Clone)]
pub struct Rule {
    /// As it was written.
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
    /// A rule for the modules whose names begin with a match of `pattern`; what is wrong with the pattern.
    pub fn new(pattern: &str, change: Change) -> Result<Rule, String> {
        // Python's `match`: anchored where the name begins, not where it ends.
        let regex = Regex::new(&format!(r"\A(?:{pattern})")).map_err(|error| format!("`{pattern}`: {error}"))?;
        Ok(Rule { pattern: pattern.into(), regex, change })
    }

    /// A rule for the one module of this name.
    pub fn exact(module: &str, change: Change) -> Rule {
        let pattern = format!("^{}$", fancy_regex::escape(module));
        Rule::new(&pattern, change).expect("an escaped name is a pattern")
    }

    /// Reads `PATTERN:skip` or `PATTERN:bits=8,group=32,sym=false`; what is wrong with it.
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
            let taken = match name {
                "bits" => bits.is_some(),
                "sym" => sym.is_some(),
                _ => group_size.is_some(),
            };
            if !taken {
                return Err(format!("`{value}` cannot be the value of `{name}`"));
            }
        }
        Rule::new(pattern, Change::Settings { bits, group_size, sym })
    }

    /// What it means for the modules that it matches.
    pub fn change(&self) -> Change {
        self.change
    }

    /// Whether it is about `module`. An error is that of a pattern which takes too long.
    pub fn matches(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|error| Error::Malformed {
            file: "dynamic".into(),
            reason: format!("`{}` cannot be matched with `{module}`: {error}", self.pattern),
        })
    }
}

/// Written as [`Rule::parse`] reads it.
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

/// The rules of a configuration, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// What is said of `module`: by the first rule that matches it.
    pub fn change_of(&self, module: &str) -> Result<Option<Change>> {
        for rule in &self.0 {
            if rule.matches(module)? {
                return Ok(Some(rule.change));
            }
        }
        Ok(None)
    }

    /// Reads `dynamic`; none where there is no such field.
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
                None => settings(value).map_err(|field| malformed(format!("`{pattern}` has a bad `{field}`")))?,
            };
            let pattern = pattern.strip_prefix("-:").or(pattern.strip_prefix("+:")).unwrap_or(pattern);
            Rule::new(pattern, change).map_err(malformed)
        };
        Ok(Rules(fields.iter().map(rule).collect::<Result<_>>()?))
    }

    /// The object for `dynamic`.
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

/// Bits that a code may have.
pub(super) fn is_known_width(bits: usize) -> bool {
    matches!(bits, 2 | 3 | 4 | 8)
}

/// The fields of a rule that matter to a reader; the name of one that makes no sense.
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
