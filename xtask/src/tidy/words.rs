//! [`WORDS`]: code that belongs into some files only.

use super::{
    Finding,
    tokens::pattern,
    tree::{File, Part, Tree},
};

/// Code that may stand in some files only.
pub struct Banned {
    pub name: &'static str,
    pub why: &'static str,
    /// Patterns of tokens. Tests and comments are not searched.
    code: &'static [&'static str],
    /// True if the rule applies to a file.
    applies: fn(&File) -> bool,
}

/// Every restriction.
pub const WORDS: &[Banned] = &[
    Banned {
        name: "binary-dependency",
        why: "these crates are for binaries: a library returns errors of its own and reports progress through a trait",
        code: &["anyhow", "clap", "ctrlc", "indicatif", "rustyline"],
        applies: |file| file.part == Part::Library,
    },
    Banned {
        name: "binary-arrow",
        why: "only the binary may import this crate, see the arrows in ARCHITECTURE.md",
        code: &["weight_convert"],
        applies: |file| file.part == Part::Library && file.package() == "gptq-quant",
    },
    Banned {
        name: "binary-arrow",
        why: "only the binary may import this crate, see the arrows in ARCHITECTURE.md",
        code: &["calib_data"],
        applies: |file| file.part == Part::Library && file.package() == "chat-cli",
    },
    Banned {
        name: "binary-arrow",
        why: "only binaries and benches may import this crate, see the arrows in ARCHITECTURE.md",
        code: &["command_line"],
        applies: |file| file.part == Part::Library,
    },
    Banned {
        name: "wasm-place",
        why: "platforms differ in `webgpu-kernels/src/gpu/`, `model-format/src/files.rs` and `web-chat` alone",
        code: &["target_arch = \"wasm32\"", "target_family = \"wasm\""],
        applies: |file| is_outside(file, &["webgpu-kernels/src/gpu/", "model-format/src/files.rs", "web-chat/"]),
    },
    Banned {
        name: "processor-place",
        why: "instructions of one kind of processor stand in `model-format/src/quant/group_quant/dot/` and \
              `infer-core/src/ops/candle/vectorized.rs` alone, each beside its portable form",
        code: &[
            "target_arch = \"x86\"",
            "target_arch = \"x86_64\"",
            "target_arch = \"aarch64\"",
            "target_feature",
            "arch::x86_64",
            "arch::aarch64",
            "is_x86_feature_detected",
            "is_aarch64_feature_detected",
        ],
        applies: |file| {
            is_outside(
                file,
                &["model-format/src/quant/group_quant/dot/", "infer-core/src/ops/candle/vectorized.rs", "xtask/"],
            )
        },
    },
    Banned {
        name: "environment",
        why: "setting a variable is undefined while other threads run: pass the value as an argument",
        code: &["env::set_var", "env::remove_var"],
        applies: |_| true,
    },
];

impl Banned {
    /// Every place that breaks the rule.
    pub fn check(&self, tree: &Tree) -> Vec<Finding> {
        let mut findings = Vec::new();
        for code in self.code {
            let pattern = pattern(code);
            for (file, tokens) in tree.rust().filter(|(file, _)| (self.applies)(file)) {
                let found = tokens.find(&pattern).filter(|token| !token.is_test);
                findings.extend(found.map(|token| Finding::at(file, token.line, format!("`{code}`"))));
            }
        }
        findings
    }
}

fn is_outside(file: &File, places: &[&str]) -> bool {
    !places.iter().any(|place| file.path.starts_with(place))
}
