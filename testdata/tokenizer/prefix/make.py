"""Writes cases.json: the prefix tokens that transformers adds before a text, by tokenizer.json and tokenizer_config.json.

Run in two environments, one after the other:
    python make.py transformers==4.57.6     (tokenizers 0.22.2)
    python make.py transformers==5.24.0     (tokenizers 0.23.3)
Each run checks its version and fills its own column.
"""

import json
import os
import sys
import tempfile

import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(HERE, "cases.json")
TOKENS = ["<unk>", "<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>",
          "[CLS]", "[SEP]", "<BOS_TOKEN>", "<pad>", "<mask>"]
LETTERS = ["a", "b", "c", "\u2581", "\u0120"]
TEXT = "abc"


def special(token):
    return {"SpecialToken": {"id": token, "type_id": 0}}


SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def template(before, after=()):
    """A TemplateProcessing with tokens before and after the text."""
    named = {token: {"id": token, "ids": [TOKENS.index(token)], "tokens": [token]} for token in [*before, *after]}
    single = [*map(special, before), SEQUENCE, *map(special, after)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}


def sequence(*parts):
    return {"type": "Sequence", "processors": list(parts)}


def named(kind, bos, **more):
    return {"tokenizer_class": kind, "bos_token": bos, **more}


def pair(token):
    return [token, TOKENS.index(token)]


BERT = {"type": "BertProcessing", "sep": pair("[SEP]"), "cls": pair("[CLS]")}
ROBERTA = {"type": "RobertaProcessing", "sep": pair("</s>"), "cls": pair("<s>"), "trim_offsets": True,
           "add_prefix_space": False}
LLAMA3 = sequence(BYTE_LEVEL, template(["<|begin_of_text|>"]))
FAST = "PreTrainedTokenizerFast"

# name, model_type, post_processor, tokenizer_config (None: no such file)
INPUTS = [
    ("Llama 3", "llama", LLAMA3, named(FAST, "<|begin_of_text|>", eos_token="<|end_of_text|>")),
    ("Gemma", "gemma2", template(["<bos>"]), named("GemmaTokenizer", "<bos>", add_bos_token=True, add_eos_token=False)),
    ("Gemma, in the configuration only", "gemma2", None, named("GemmaTokenizer", "<bos>", add_bos_token=True)),
    ("Gemma, in the configuration only, Fast", "gemma2", None, named("GemmaTokenizerFast", "<bos>", add_bos_token=True)),
    ("Qwen", "qwen2", BYTE_LEVEL, named("Qwen2Tokenizer", None, add_bos_token=False)),
    ("Qwen, against its class", "qwen2", BYTE_LEVEL, named("Qwen2Tokenizer", "<|endoftext|>", add_bos_token=True)),
    ("SmolLM2", "llama", None, named("GPT2Tokenizer", "<|endoftext|>")),
    ("GPT-2 with add_bos_token", "gpt2", BYTE_LEVEL, named("GPT2Tokenizer", "<|endoftext|>", add_bos_token=True)),
    ("Llama 2", "llama", template(["<s>"]), named("LlamaTokenizer", "<s>", add_bos_token=True, add_eos_token=False)),
    ("Llama 2, token as an object", "llama", None, named("LlamaTokenizer", {
        "__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False}, add_bos_token=True)),
    ("Llama 2 with an end token", "llama", template(["<s>"], ["</s>"]),
     named("LlamaTokenizer", "<s>", eos_token="</s>", add_bos_token=True, add_eos_token=True)),
    ("Llama class, switched off", "llama", template(["<s>"]), named("LlamaTokenizer", "<s>", add_bos_token=False)),
    ("Llama class, ByteLevel, switched on", "llama", BYTE_LEVEL,
     named("LlamaTokenizerFast", "<|begin_of_text|>", add_bos_token=True)),
    ("Llama class, another token", "llama", template(["<s>"]),
     named("LlamaTokenizer", "<|begin_of_text|>", add_bos_token=True)),
    ("Llama class, nothing said", "llama", template(["<s>"]), named("LlamaTokenizer", "<s>")),
    ("Llama class, nothing said, none", "llama", template([]), named("LlamaTokenizer", "<s>")),
    ("Code Llama, switched off", "llama", template(["<s>"]), named("CodeLlamaTokenizer", "<s>", add_bos_token=False)),
    ("Cohere", "cohere", template(["<BOS_TOKEN>"]), named("CohereTokenizer", "<BOS_TOKEN>", add_bos_token=True)),
    ("GPT-NeoX, switched on", "gpt_neox", None, named("GPTNeoXTokenizer", "<|endoftext|>", add_bos_token=True)),
    ("GPT-NeoX, switched off", "gpt_neox", None, named("GPTNeoXTokenizer", "<|endoftext|>", add_bos_token=False)),
    ("any class, switched off", "llama", template(["<bos>"]), named(FAST, "<bos>", add_bos_token=False)),
    ("any class, switched on", "llama", None, named(FAST, "<bos>", add_bos_token=True)),
    ("no class, switched on", "llama", None, {"bos_token": "<s>", "add_bos_token": True}),
    ("no class, switched off", "llama", template(["<s>"]), {"bos_token": "<s>", "add_bos_token": False}),
    ("no configuration", "llama", LLAMA3, None),
    ("Bert", "llama", BERT, named(FAST, None)),
    ("Roberta", "llama", ROBERTA, named(FAST, None)),
    ("several before and after", "llama", template(["<s>", "[CLS]"], ["</s>"]), named(FAST, "<s>")),
    ("only after", "llama", template([], ["</s>"]), named(FAST, "<s>")),
]


def tokenizer_json(post_processor):
    vocab = {token: i for i, token in enumerate([*TOKENS, *LETTERS])}
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in enumerate(TOKENS)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": None, "post_processor": post_processor, "decoder": None,
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": []}}


def before(model_type, post_processor, config):
    """The tokens that the model's own tokenizer adds before a text."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"config.json": {"model_type": model_type}, "tokenizer.json": tokenizer_json(post_processor),
                 "tokenizer_config.json": config}
        for name, content in files.items():
            if content is not None:
                with open(os.path.join(folder, name), "w") as file:
                    json.dump(content, file)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        plain, whole = (tokenizer.encode(TEXT, add_special_tokens=add) for add in (False, True))
        at = next(i for i in range(len(whole)) if whole[i:i + len(plain)] == plain)
        return tokenizer.convert_ids_to_tokens(whole[:at])


def main():
    assert sys.argv[1] == f"transformers=={transformers.__version__}", transformers.__version__
    known = json.load(open(CASES))["cases"] if os.path.exists(CASES) else []
    known = {case["name"]: case for case in known}
    cases = []
    for name, model_type, post_processor, config in INPUTS:
        case = {"name": name, "post_processor": post_processor, "tokenizer_config": config}
        old = known.get(name, {})
        case.update({key: value for key, value in old.items() if key.startswith("transformers")})
        case["transformers " + transformers.__version__] = before(model_type, post_processor, config)
        cases.append(case)
    lines = ",\n".join("    " + json.dumps(case, ensure_ascii=False) for case in cases)
    with open(CASES, "w") as file:
        file.write('{\n  "tokenizer": ' + json.dumps(tokenizer_json(None)) + ',\n  "cases": [\n' + lines + "\n  ]\n}\n")


main()
