//! [`WORDS`]: words that may not stand in code, and where they may.

use super::{
    Finding,
    source::is_word,
    tree::{File, Part, Tree},
};

/// Words that may stand in some files only.
pub struct Banned {
    pub name: &'static str,
    pub why: &'static str,
    words: &'static [&'static str],
    /// Which text of a file is searched.
    search: Search,
    /// Whether the rule holds for a file.
    holds: fn(&File) -> bool,
}

#[derive(PartialEq)]
enum Search {
    /// Code outside tests.
    Code,
    /// Code and literals outside tests.
    CodeAndLiterals,
    /// Everything, comments and tests included.
    All,
}

/// Every banned word.
pub const WORDS: &[Banned] = &[
    Banned {
        name: "silent-library",
        why: "no library prints, reads the environment or exits: take it as an argument, return it, or report progress",
        words: &[
            "println!",
            "print!",
            "eprintln!",
            "eprint!",
            "dbg!",
            "stdout()",
            "stderr()",
            "env::var",
            "env::var_os",
            "env::vars",
            "env::args",
            "process::exit",
        ],
        search: Search::Code,
        holds: |file| file.part == Part::Library,
    },
    Banned {
        name: "no-wait",
        why: "no library waits: return a future, and let the binary wait for it",
        words: &["block_on("],
        search: Search::Code,
        // These offer the wait to the binaries.
        holds: |file| {
            let offers = ["webgpu-kernels/src/lib.rs", "webgpu-kernels/src/gpu/", "infer-core/src/lib.rs"];
            file.part == Part::Library && !offers.iter().any(|place| file.path.starts_with(place))
        },
    },
    Banned {
        name: "wasm-place",
        why: "platforms differ in `webgpu-kernels/src/gpu/`, `model-format/src/files.rs` and `web-chat` alone",
        words: &["target_arch = \"wasm32\"", "target_family = \"wasm\"", "cfg(wasm"],
        search: Search::CodeAndLiterals,
        holds: |file| {
            !["webgpu-kernels/src/gpu/", "model-format/src/files.rs", "web-chat/", "xtask/src/tidy"]
                .iter()
                .any(|place| file.path.starts_with(place))
        },
    },
    Banned {
        name: "processor-place",
        why: "instructions of one kind of processor stand in `model-format/src/quant/group_quant/dot/` and \
              `infer-core/src/ops/candle/vectorized.rs` alone, each with its portable form",
        words: &[
            "target_arch = \"x86",
            "target_arch = \"aarch64",
            "target_feature",
            "arch::x86_64",
            "arch::aarch64",
            "is_x86_feature_detected!",
            "is_aarch64_feature_detected!",
        ],
        search: Search::CodeAndLiterals,
        holds: |file| {
            !["model-format/src/quant/group_quant/dot/", "infer-core/src/ops/candle/vectorized.rs", "xtask/src/tidy"]
                .iter()
                .any(|place| file.path.starts_with(place))
        },
    },
    Banned {
        name: "unfinished",
        why: "what is in the repository works: finish it, or leave it out and say so in an issue",
        words: &["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "#[ignore"],
        search: Search::All,
        holds: |file| !file.path.starts_with("xtask/src/tidy"),
    },
];

impl Banned {
    /// Every place where a word stands and may not.
    pub fn check(&self, tree: &Tree) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (file, source) in tree.sources().filter(|(file, _)| (self.holds)(file)) {
            let text = match self.search {
                Search::Code => &source.code,
                Search::CodeAndLiterals => &source.without_comments,
                Search::All => &file.text,
            };
            let tests_too = self.search == Search::All;
            for word in self.words {
                let offsets = find_word(text, word).filter(|offset| tests_too || !source.is_test(*offset));
                findings.extend(offsets.map(|offset| Finding::at(file, offset, format!("`{word}`"))));
            }
        }
        findings
    }
}

/// Offsets of `word` where no letter goes on at either end that is a letter itself.
pub fn find_word(text: &str, word: &str) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    let starts = |at: usize| at > 0 && is_word(bytes[at]) && is_word(bytes[at - 1]);
    let goes_on = |end: usize| is_word(bytes[end - 1]) && bytes.get(end).is_some_and(|byte| is_word(*byte));
    text.match_indices(word).map(|(at, _)| at).filter(move |at| !starts(*at) && !goes_on(at + word.len()))
}
