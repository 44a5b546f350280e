//! The prefix tokens of a tokenizer: usually BOS, or nothing.
//!
//! [`Tokenizer`](crate::Tokenizer) determines them when it is loaded. Code that runs plain text uses
//! [`Tokenizer::prefix`](crate::Tokenizer::prefix). Chat templates write their own prefix.
//!
//! Two files define the prefix. The post-processor of tokenizer.json is a template of special tokens around a text.
//! tokenizer_config.json has `add_bos_token`. Some tokenizer classes of transformers 4 replace the post-processor by it
//! (`update_post_processor` in 4.57.6); all other classes ignore it. transformers 5 (5.24.0) ignores it for every model with a
//! tokenizer.json, even for older models whose BOS is only in `add_bos_token` (for example DeepSeek's distilled models).
//!
//! The rule here: an explicit `add_bos_token` of such a class wins, else the post-processor. `testdata/tokenizer/prefix/`
//! records the results of both versions, case by case.

use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use crate::{
    Result,
    text::files::{damaged, object, special_tokens},
};

/// Tokenizer classes of transformers that use `add_bos_token`. Each exists with the suffix `Fast` too.
const CLASSES: [&str; 5] =
    ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "GPTNeoXTokenizer", "CohereTokenizer"];

/// The value of `add_bos_token`, if it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddBos {
    /// Absent, or ignored for this class: the post-processor decides.
    Unset,
    /// No prefix token.
    Off,
    /// This token is the prefix.
    On(String),
}

/// Reads `add_bos_token` from a model's files (names and contents).
pub(crate) fn add_bos(files: &[(String, Vec<u8>)]) -> Result<AddBos> {
    const FILE: &str = "tokenizer_config.json";
    let config = object(files, FILE)?;
    let class_in = |object: &serde_json::Map<String, Value>| {
        let class = object.get("tokenizer_class").and_then(Value::as_str)?;
        Some(class.strip_suffix("Fast").unwrap_or(class).to_string())
    };
    // If neither file names a class, transformers 4 derives it from the model type. Most of those classes use the field.
    let class = match class_in(&config) {
        None => class_in(&object(files, "config.json")?),
        class => class,
    };
    if class.is_some_and(|class| !CLASSES.contains(&class.as_str())) {
        return Ok(AddBos::Unset);
    }
    match config.get("add_bos_token") {
        None | Some(Value::Null) => Ok(AddBos::Unset),
        Some(Value::Bool(false)) => Ok(AddBos::Off),
        Some(Value::Bool(true)) => {
            let token = special_tokens(files)?.get("bos_token").and_then(Value::as_str).map(str::to_string);
            Ok(token.map_or(AddBos::Unset, AddBos::On))
        }
        Some(other) => Err(damaged(FILE, format!("`add_bos_token` is {other}, not true or false"))),
    }
}

/// The ids of the prefix.
pub(crate) fn ids(tokenizer: &Tokenizer, add_bos: &AddBos) -> tokenizers::Result<Vec<u32>> {
    match add_bos {
        AddBos::Unset => post_processor_prefix(tokenizer),
        AddBos::Off => Ok(Vec::new()),
        AddBos::On(token) => {
            let unknown =
                || format!("`bos_token` in tokenizer_config.json is `{token}`, which tokenizer.json does not have");
            Ok(vec![tokenizer.token_to_id(token).ok_or_else(unknown)?])
        }
    }
}

/// The ids that the post-processor writes before a text of one token.
fn post_processor_prefix(tokenizer: &Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let Some(processor) = tokenizer.get_post_processor() else { return Ok(Vec::new()) };
    let text = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let whole = processor.process(text, None, true)?;
    let begin = whole.get_special_tokens_mask().iter().position(|&is_special| is_special == 0);
    let begin = begin.ok_or("its post-processor drops the text")?;
    let ids = &whole.get_ids()[..begin];
    match ids.iter().find(|&&id| tokenizer.id_to_token(id).is_none()) {
        Some(id) => {
            Err(format!("its post-processor writes token id {id} before a text, but no token has this id").into())
        }
        None => Ok(ids.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};
    use tokenizers::{
        AddedToken, PostProcessorWrapper, Tokenizer as Crate,
        models::bpe::{BPE, Vocab},
        pre_tokenizers::byte_level::ByteLevel,
        processors::{sequence::Sequence, template::TemplateProcessing},
    };

    use crate::Tokenizer;

    const CASES: &[u8] = include_bytes!("../../../testdata/tokenizer/prefix/cases.json");

    fn read(tokenizer: &Value, config: &Value) -> crate::Result<Tokenizer> {
        let mut files = vec![("tokenizer.json".to_string(), tokenizer.to_string().into_bytes())];
        if !config.is_null() {
            files.push(("tokenizer_config.json".into(), config.to_string().into_bytes()));
        }
        Tokenizer::from_files(&files, "a folder")
    }

    /// The recorded vocabulary with a post-processor.
    fn with_post_processor(post_processor: &Value) -> Value {
        let cases: Value = serde_json::from_slice(CASES).unwrap();
        let mut tokenizer = cases["tokenizer"].clone();
        tokenizer["post_processor"] = post_processor.clone();
        tokenizer
    }

    /// Where the two versions differ: with an explicit `add_bos_token` the result is from transformers 4, else from 5.
    #[test]
    fn equals_transformers() {
        let cases: Value = serde_json::from_slice(CASES).unwrap();
        let mut differing = 0;
        for case in cases["cases"].as_array().unwrap() {
            let is_explicit = case["tokenizer_config"]["add_bos_token"].is_boolean();
            let (four, five) = (&case["transformers 4.57.6"], &case["transformers 5.24.0"]);
            differing += usize::from(four != five);
            let tokenizer = read(&with_post_processor(&case["post_processor"]), &case["tokenizer_config"]).unwrap();
            let found: Vec<_> = tokenizer.prefix().iter().map(|&id| tokenizer.token(id)).collect();
            assert_eq!(&json!(found), if is_explicit { four } else { five }, "{}", case["name"]);
        }
        assert_eq!((cases["cases"].as_array().unwrap().len(), differing), (29, 12));
    }

    /// A byte-level vocabulary of single bytes, and these control tokens.
    fn byte_level(control: &[&str]) -> Crate {
        let mut letters: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        letters.sort();
        let vocab: Vocab = letters.into_iter().zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(vocab, vec![]).build().unwrap();
        let mut tokenizer = Crate::new(model);
        tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer.add_special_tokens(control.iter().map(|token| AddedToken::from(*token, true))).unwrap();
        tokenizer
    }

    fn template(tokenizer: &Crate, single: &str, special: &[&str]) -> PostProcessorWrapper {
        let special: Vec<_> = special.iter().map(|token| (*token, tokenizer.token_to_id(token).unwrap())).collect();
        TemplateProcessing::builder().try_single(single).unwrap().special_tokens(special).build().unwrap().into()
    }

    /// Saves `tokenizer` with the tokenizers crate, loads it, and compares with the crate's own encodings.
    fn check(tokenizer: &Crate, config: &Value, expected: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(&path, true).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let files: Vec<_> = ["tokenizer.json", "tokenizer_config.json"]
            .map(|name| (name.to_string(), std::fs::read(folder.path().join(name)).unwrap()))
            .into();
        let found = Tokenizer::from_files(&files, "a folder").unwrap();
        let ids: Vec<u32> = expected.iter().map(|token| tokenizer.token_to_id(token).unwrap()).collect();
        assert_eq!(found.prefix(), ids);
        for text in ["", "a", " two words", "é\n"] {
            let ids_of = |whole| tokenizer.encode(text, whole).unwrap().get_ids().to_vec();
            assert_eq!(found.encode(text).unwrap(), ids_of(false), "{text:?}");
            let whole = found.encode_with_prefix(text).unwrap();
            assert_eq!(whole, [&ids[..], &ids_of(false)].concat(), "{text:?}");
            // A prefix that is already in the text is not doubled.
            let written = format!("{}{text}", expected.concat());
            assert_eq!(found.encode_with_prefix(&written).unwrap(), whole, "{written:?}");
            if tokenizer.get_post_processor().is_some() && config["add_bos_token"].is_null() {
                assert!(ids_of(true).starts_with(&whole), "{text:?}");
            }
        }
    }

    #[test]
    fn prefixes_equal_the_tokenizers_crate() {
        let any = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        // Llama 3.
        let mut tokenizer = byte_level(&["<|begin_of_text|>", "<|end_of_text|>"]);
        let bos = template(&tokenizer, "<|begin_of_text|> $A", &["<|begin_of_text|>"]);
        let both = Sequence::new(vec![ByteLevel::default().into(), bos]);
        tokenizer.with_post_processor(Some(both));
        check(&tokenizer, &any, &["<|begin_of_text|>"]);
        // Gemma: `add_bos_token` alone, then with a post-processor that agrees, then with a post-processor alone, then against it.
        let mut tokenizer = byte_level(&["<pad>", "<eos>", "<bos>"]);
        let gemma = json!({ "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "add_bos_token": true });
        check(&tokenizer, &gemma, &["<bos>"]);
        check(&tokenizer, &any, &[]);
        let bos = template(&tokenizer, "<bos> $A", &["<bos>"]);
        tokenizer.with_post_processor(Some(bos));
        check(&tokenizer, &gemma, &["<bos>"]);
        check(&tokenizer, &any, &["<bos>"]);
        let off = json!({ "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "add_bos_token": false });
        check(&tokenizer, &off, &[]);
        // Qwen.
        let mut tokenizer = byte_level(&["<|endoftext|>"]);
        tokenizer.with_post_processor(Some(ByteLevel::default()));
        let qwen = json!({ "tokenizer_class": "Qwen2Tokenizer", "bos_token": null, "add_bos_token": false });
        check(&tokenizer, &qwen, &[]);
        // The suffix of a text is not added, because the model continues the text.
        let mut tokenizer = byte_level(&["<s>", "</s>", "<x>"]);
        let around = template(&tokenizer, "<s> <x> $A </s>", &["<s>", "<x>", "</s>"]);
        tokenizer.with_post_processor(Some(around));
        check(&tokenizer, &any, &["<s>", "<x>"]);
    }

    #[test]
    fn invalid_files_are_errors() {
        let check = |post_processor: Value, config: Value, expected: &str| {
            let error = read(&with_post_processor(&post_processor), &config).err().expect(expected);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint().is_some(), "{error}");
        };
        let template = |ids: Value, single: Value| {
            let special = json!({ "<s>": { "id": "<s>", "ids": ids, "tokens": ["<s>"] } });
            json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special })
        };
        let bos = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        check(template(json!([4_000_000_000u32]), json!([bos, text])), Value::Null, "token id 4000000000");
        check(template(json!([1]), json!([bos])), Value::Null, "drops the text");
        let class = |extra: (&str, Value)| {
            let mut config = Map::new();
            config.insert("tokenizer_class".into(), "LlamaTokenizer".into());
            config.insert("add_bos_token".into(), true.into());
            config.insert(extra.0.into(), extra.1);
            Value::Object(config)
        };
        check(Value::Null, class(("bos_token", "<none>".into())), "`<none>`");
        check(Value::Null, class(("add_bos_token", "yes".into())), "not true or false");
        check(Value::Null, json!([1]), "not a JSON object");
        // Without a `bos_token`, the prefix is empty.
        assert!(
            read(&with_post_processor(&Value::Null), &class(("bos_token", Value::Null))).unwrap().prefix().is_empty()
        );
    }
}
