//! The rule by which a tokenizer puts tokens before a text: BOS, for most models that have any.
//!
//! [`Tokenizer`](crate::Tokenizer) applies it when it is read, and everything that runs plain text asks
//! [`Tokenizer::prefix`](crate::Tokenizer::prefix). Chat templates write their own.
//!
//! Two files speak of it. The post-processor of tokenizer.json is a template of special tokens around a text.
//! tokenizer_config.json has `add_bos_token`, from which some classes of transformers 4 make the post-processor anew
//! (`update_post_processor` in 4.57.6), whatever tokenizer.json says; all other classes ignore it. transformers 5 (5.24.0) ignores it
//! wherever there is a tokenizer.json, also for models published before, such as DeepSeek's distilled ones, whose
//! BOS stands in `add_bos_token` alone. So here: what such a class says in so many words counts, else the post-processor.
//! `testdata/tokenizer/prefix/` has the outcome of both versions, case by case.

use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use crate::{
    Result,
    text_files::{damaged, object, special_tokens},
};

/// The classes of transformers that read `add_bos_token`. Each is also written with `Fast` at its end.
const CLASSES: [&str; 5] =
    ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "GPTNeoXTokenizer", "CohereTokenizer"];

/// What tokenizer_config.json says of BOS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stated {
    /// Nothing that counts: the post-processor decides.
    Nothing,
    /// No token is put before a text.
    Off,
    /// This token is.
    On(String),
}

/// What a model's files (names and contents) say beside tokenizer.json.
pub(crate) fn stated(files: &[(String, Vec<u8>)]) -> Result<Stated> {
    const FILE: &str = "tokenizer_config.json";
    let config = object(files, FILE)?;
    let class_in = |object: &serde_json::Map<String, Value>| {
        let class = object.get("tokenizer_class").and_then(Value::as_str)?;
        Some(class.strip_suffix("Fast").unwrap_or(class).to_string())
    };
    // Where neither file names a class, transformers 4 goes by the kind of model, most of which have such a class.
    let class = match class_in(&config) {
        None => class_in(&object(files, "config.json")?),
        class => class,
    };
    if class.is_some_and(|class| !CLASSES.contains(&class.as_str())) {
        return Ok(Stated::Nothing);
    }
    match config.get("add_bos_token") {
        None | Some(Value::Null) => Ok(Stated::Nothing),
        Some(Value::Bool(false)) => Ok(Stated::Off),
        Some(Value::Bool(true)) => {
            let token = special_tokens(files)?.get("bos_token").and_then(Value::as_str).map(str::to_string);
            Ok(token.map_or(Stated::Nothing, Stated::On))
        }
        Some(other) => Err(damaged(FILE, format!("`add_bos_token` is {other}, neither true nor false"))),
    }
}

/// The ids that come before a text.
pub(crate) fn ids(tokenizer: &Tokenizer, stated: &Stated) -> tokenizers::Result<Vec<u32>> {
    match stated {
        Stated::Nothing => of_post_processor(tokenizer),
        Stated::Off => Ok(Vec::new()),
        Stated::On(token) => {
            let unknown =
                || format!("`bos_token` of tokenizer_config.json is `{token}`, which tokenizer.json does not have");
            Ok(vec![tokenizer.token_to_id(token).ok_or_else(unknown)?])
        }
    }
}

/// What the post-processor puts before a text of one token.
fn of_post_processor(tokenizer: &Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let Some(processor) = tokenizer.get_post_processor() else { return Ok(Vec::new()) };
    let text = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let whole = processor.process(text, None, true)?;
    let begin = whole.get_special_tokens_mask().iter().position(|&is_special| is_special == 0);
    let begin = begin.ok_or("its post-processor leaves the text out")?;
    let ids = &whole.get_ids()[..begin];
    match ids.iter().find(|&&id| tokenizer.id_to_token(id).is_none()) {
        Some(id) => {
            Err(format!("its post-processor puts token id {id} before a text, and there is no such token").into())
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

    const CASES: &[u8] = include_bytes!("../../testdata/tokenizer/prefix/cases.json");

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

    /// Where the two versions differ, what the configuration says in so many words counts, as in transformers 4, and
    /// nothing else of it, as in transformers 5.
    #[test]
    fn equals_transformers() {
        let cases: Value = serde_json::from_slice(CASES).unwrap();
        let mut differing = 0;
        for case in cases["cases"].as_array().unwrap() {
            let is_said = case["tokenizer_config"]["add_bos_token"].is_boolean();
            let (four, five) = (&case["transformers 4.57.6"], &case["transformers 5.24.0"]);
            differing += usize::from(four != five);
            let tokenizer = read(&with_post_processor(&case["post_processor"]), &case["tokenizer_config"]).unwrap();
            let found: Vec<_> = tokenizer.prefix().iter().map(|&id| tokenizer.token(id)).collect();
            assert_eq!(&json!(found), if is_said { four } else { five }, "{}", case["name"]);
        }
        assert_eq!((cases["cases"].as_array().unwrap().len(), differing), (29, 12));
    }

    /// A byte-level vocabulary of letters and these control tokens.
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

    /// Saved by the crate that transformers uses, read back, and held against what that crate makes of texts.
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
            // Not doubled where the text has it already.
            let written = format!("{}{text}", expected.concat());
            assert_eq!(found.encode_with_prefix(&written).unwrap(), whole, "{written:?}");
            if tokenizer.get_post_processor().is_some() && config["add_bos_token"].is_null() {
                assert!(ids_of(true).starts_with(&whole), "{text:?}");
            }
        }
    }

    #[test]
    fn files_of_the_tokenizers_crate_are_read() {
        let any = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        // Llama 3.
        let mut tokenizer = byte_level(&["<|begin_of_text|>", "<|end_of_text|>"]);
        let bos = template(&tokenizer, "<|begin_of_text|> $A", &["<|begin_of_text|>"]);
        let both = Sequence::new(vec![ByteLevel::default().into(), bos]);
        tokenizer.with_post_processor(Some(both));
        check(&tokenizer, &any, &["<|begin_of_text|>"]);
        // Gemma; and with its configuration alone; and with that against the post-processor.
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
        // What comes behind a text is not for a model that is to go on.
        let mut tokenizer = byte_level(&["<s>", "</s>", "<x>"]);
        let around = template(&tokenizer, "<s> <x> $A </s>", &["<s>", "<x>", "</s>"]);
        tokenizer.with_post_processor(Some(around));
        check(&tokenizer, &any, &["<s>", "<x>"]);
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
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
        check(template(json!([1]), json!([bos])), Value::Null, "leaves the text out");
        let class = |extra: (&str, Value)| {
            let mut config = Map::new();
            config.insert("tokenizer_class".into(), "LlamaTokenizer".into());
            config.insert("add_bos_token".into(), true.into());
            config.insert(extra.0.into(), extra.1);
            Value::Object(config)
        };
        check(Value::Null, class(("bos_token", "<none>".into())), "`<none>`");
        check(Value::Null, class(("add_bos_token", "yes".into())), "neither true nor false");
        check(Value::Null, json!([1]), "not a JSON object");
        // A token that nobody names cannot be added.
        assert!(
            read(&with_post_processor(&Value::Null), &class(("bos_token", Value::Null))).unwrap().prefix().is_empty()
        );
    }
}
