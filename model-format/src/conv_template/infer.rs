//! Finds the conversation template of a checkpoint by its Jinja template and its special tokens.

use std::collections::HashMap;

use serde_json::Value;

use super::ConvTemplate;
use crate::{Error, Result};

/// Conditions for a template.
struct Rule {
    template: &'static str,
    /// Texts that the Jinja template must contain. Without a Jinja template, the list of special tokens must contain
    /// them.
    contains: &'static [&'static str],
    /// A special token that must have this id.
    token: Option<(&'static str, u32)>,
}

const fn rule(template: &'static str, contains: &'static [&'static str]) -> Rule {
    Rule { template, contains, token: None }
}

const fn token_rule(template: &'static str, contains: &'static [&'static str], token: &'static str, id: u32) -> Rule {
    Rule { template, contains, token: Some((token, id)) }
}

/// The first matching rule decides, so specific rules come before general ones.
const RULES: &[Rule] = &[
    rule("llama-3_1", &["<|start_header_id|>", "ipython"]),
    rule("llama-3_1", &["<|start_header_id|>", "<|eom_id|>"]),
    rule("llama-3", &["<|start_header_id|>"]),
    rule("llama-4", &["<|header_start|>"]),
    token_rule("hermes3_llama-3_1", &["<|im_start|>"], "<|im_end|>", 128040),
    token_rule("hermes2_pro_llama3", &["<|im_start|>"], "<|im_end|>", 128003),
    token_rule("open_hermes_mistral", &["<|im_start|>"], "<|im_end|>", 32000),
    token_rule("qwen3_5", &["<|im_start|>"], "<|im_end|>", 248046),
    token_rule("qwen3", &["<|im_start|>", "enable_thinking"], "<|im_end|>", 151645),
    token_rule("qwen3", &["<|im_start|>", "reasoning_content"], "<|im_end|>", 151645),
    token_rule("qwen2", &["<|im_start|>"], "<|im_end|>", 151645),
    token_rule("chatml", &["<|im_start|>"], "<|im_end|>", 2),
    rule("gemma3_instruction", &["<start_of_turn>", "<start_of_image>"]),
    rule("gemma_instruction", &["<start_of_turn>"]),
    token_rule("deepseek_r1_qwen", &["<｜Assistant｜>"], "<｜end▁of▁sentence｜>", 151643),
    token_rule("deepseek_r1_llama", &["<｜Assistant｜>"], "<｜end▁of▁sentence｜>", 128001),
    token_rule("deepseek_v3", &["<｜Assistant｜>"], "<｜end▁of▁sentence｜>", 1),
    rule("aya-23", &["<|START_OF_TURN_TOKEN|>"]),
    rule("ministral3", &["[INST]", "[SYSTEM_PROMPT]"]),
    rule("llama-2", &["[INST]", "<<SYS>>"]),
    rule("mistral_default", &["[INST]"]),
    token_rule("phi-4", &["<|user|>", "<|end|>"], "<|end|>", 200020),
    rule("phi-3", &["<|user|>", "<|end|>"]),
    token_rule("tinyllama_v1_0", &["<|user|>", "<|assistant|>"], "</s>", 2),
    token_rule("olmo2", &["<|user|>", "<|assistant|>"], "<|endoftext|>", 100257),
    rule("redpajama_chat", &["<human>", "<bot>"]),
    rule("wizard_coder_or_math", &["Below is an instruction that describes a task", "### Instruction", "### Response"]),
];

/// Checks that a template named by the user fits a checkpoint. `files` has names and contents of the checkpoint's
/// files.
///
/// The check fails only if the tokenizer has none of the template's stop tokens, but has a stop token of the inferred
/// template. If no template can be inferred, the check passes.
///
/// # Errors
///
/// [`Error::WrongConvTemplate`].
pub fn check_fits(template: &ConvTemplate, files: &[(String, Vec<u8>)]) -> Result<()> {
    let Ok(inferred) = infer(files) else { return Ok(()) };
    let json = |name: &str| {
        let content = files.iter().find(|(file, _)| file == name).map(|(_, content)| content)?;
        serde_json::from_slice::<Value>(content).ok()
    };
    let tokens = special_tokens(json("tokenizer.json").as_ref(), json("tokenizer_config.json").as_ref());
    let is_known = |id: &u32| tokens.values().any(|known| known == id);
    if template.stop_token_ids.is_empty()
        || template.stop_token_ids.iter().any(is_known)
        || !inferred.stop_token_ids.iter().any(is_known)
    {
        return Ok(());
    }
    let ids = template.stop_token_ids.clone();
    Err(Error::WrongConvTemplate { name: template.name.clone(), ids, fitting: inferred.name.clone() })
}

/// Infers the template of a checkpoint from its files (names and contents).
///
/// # Errors
///
/// [`Error::NoConvTemplate`] if no rule matches.
pub fn infer(files: &[(String, Vec<u8>)]) -> Result<&'static ConvTemplate> {
    let text = |name: &str| {
        let content = files.iter().find(|(file, _)| file == name).map(|(_, content)| content)?;
        std::str::from_utf8(content).ok()
    };
    let json = |name: &str| text(name).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let tokenizer_config = json("tokenizer_config.json");
    let tokens = special_tokens(json("tokenizer.json").as_ref(), tokenizer_config.as_ref());
    let jinja = match text("chat_template.jinja") {
        Some(template) => Some(template.to_owned()),
        None => tokenizer_config.as_ref().and_then(|config| jinja_of(&config["chat_template"])),
    };
    let has_jinja = jinja.is_some();
    let signs = jinja.unwrap_or_else(|| tokens.keys().cloned().collect::<Vec<_>>().join("\n"));
    let applies = |rule: &&Rule| {
        rule.contains.iter().all(|sign| signs.contains(sign))
            && rule.token.is_none_or(|(token, id)| tokens.get(token) == Some(&id))
    };
    match RULES.iter().find(applies) {
        Some(rule) => ConvTemplate::by_name(rule.template),
        None => Err(Error::NoConvTemplate {
            reason: if has_jinja {
                "its Jinja template is unknown".into()
            } else {
                "the checkpoint has no Jinja template, and its special tokens match no template".into()
            },
            known: super::names().collect(),
        }),
    }
}

/// The Jinja template in tokenizer_config.json's `chat_template`: a string, or a list of named templates, of which
/// `default` counts.
fn jinja_of(chat_template: &Value) -> Option<String> {
    let one = match chat_template {
        Value::Array(list) => list.iter().find(|t| t["name"] == "default").or(list.first())?.get("template")?,
        one => one,
    };
    one.as_str().map(str::to_owned)
}

/// The added tokens of tokenizer.json and tokenizer_config.json, with their ids.
fn special_tokens(tokenizer: Option<&Value>, config: Option<&Value>) -> HashMap<String, u32> {
    let mut tokens = HashMap::new();
    let mut add = |content: Option<&str>, id: Option<u64>| {
        if let (Some(content), Some(id)) = (content, id.and_then(|id| u32::try_from(id).ok())) {
            tokens.insert(content.to_owned(), id);
        }
    };
    for token in tokenizer.and_then(|t| t["added_tokens"].as_array()).into_iter().flatten() {
        add(token["content"].as_str(), token["id"].as_u64());
    }
    for (id, token) in config.and_then(|c| c["added_tokens_decoder"].as_object()).into_iter().flatten() {
        add(token["content"].as_str(), id.parse().ok());
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(jinja: Option<&str>, tokens: &[(&str, u32)]) -> Vec<(String, Vec<u8>)> {
        let added: Vec<_> =
            tokens.iter().map(|(content, id)| serde_json::json!({"content": content, "id": id})).collect();
        let mut files = vec![("tokenizer.json".into(), serde_json::json!({"added_tokens": added}).to_string().into())];
        if let Some(jinja) = jinja {
            let config = serde_json::json!({"chat_template": jinja});
            files.push(("tokenizer_config.json".into(), config.to_string().into_bytes()));
        }
        files
    }

    fn check(expected: Option<&str>, jinja: Option<&str>, tokens: &[(&str, u32)]) {
        let found = infer(&files(jinja, tokens)).ok().map(|template| template.name.as_str());
        assert_eq!(found, expected, "{jinja:?} with {tokens:?}");
    }

    #[test]
    fn families_are_distinguished() {
        let chatml = Some("{{ '<|im_start|>' + role }}");
        check(Some("chatml"), chatml, &[("<|im_end|>", 2)]);
        check(Some("qwen2"), chatml, &[("<|im_end|>", 151645)]);
        check(Some("hermes3_llama-3_1"), chatml, &[("<|im_end|>", 128040)]);
        check(Some("qwen3"), Some("<|im_start|>{% if enable_thinking %}"), &[("<|im_end|>", 151645)]);
        check(Some("llama-3"), Some("<|start_header_id|>"), &[]);
        check(Some("llama-3_1"), Some("<|start_header_id|> ipython"), &[]);
        check(Some("mistral_default"), Some("[INST]"), &[]);
    }

    #[test]
    fn special_tokens_decide_without_a_jinja_template() {
        check(Some("llama-3"), None, &[("<|start_header_id|>", 3)]);
        check(Some("chatml"), None, &[("<|im_start|>", 1), ("<|im_end|>", 2)]);
    }

    #[test]
    fn unknown_templates_are_errors() {
        check(None, None, &[("<s>", 1)]);
        check(None, Some("{{ messages }}"), &[("<|im_start|>", 1), ("<|im_end|>", 2)]);
        check(None, Some("<|im_start|>"), &[("<|im_end|>", 77)]);
        assert!(infer(&[]).is_err());
        assert!(
            infer(&[("tokenizer.json".into(), vec![0xff]), ("tokenizer_config.json".into(), b"{".to_vec())]).is_err()
        );
    }

    #[test]
    fn every_rule_has_an_existing_template() {
        for rule in RULES {
            assert!(ConvTemplate::by_name(rule.template).is_ok(), "{}", rule.template);
        }
    }
}
