//! Preprocesses a kernel's shader for one [`Variant`]: imports, flags, constants from Rust, unrolled loops.
//!
//! Each directive stands on a line of its own:
//! - `#import NAME` inserts a shared file once per shader, as declarations need. `unpack` is the layout of the variant's weights.
//! - `#include NAME` inserts a shared file each time, as statements need.
//! - `#ifdef FLAG`, `#ifndef FLAG`, `#else`, `#endif` select lines by the variant's flags.
//! - `#for v in A..B` ... `#endfor` repeats the lines between, with `$v` replaced by the value, in directives too. `v` is one
//!   letter; `A` and `B` are numbers or constants. Unrolling here makes every driver keep small arrays in registers, and leaves no
//!   loop counter to check in the innermost loop.
//!
//! The result starts with the extensions of the flag `COOPERATIVE` and the variant's constants (`const NAME: u32 = ...;`).
//! [`crate::Kernel::source`] calls this.

use std::collections::HashMap;

use crate::{Kernel, Variant, kernel::all_formats};

impl Kernel {
    /// The WGSL of a variant.
    pub fn source(&self, variant: &Variant) -> String {
        expand(self.name, self.wgsl, variant)
    }
}

/// Files that a shader may import or include, by name.
const SHARED: &[(&str, &str)] = &[
    ("activation", include_str!("shared/activation.wgsl")),
    ("arguments", include_str!("shared/arguments.wgsl")),
    ("f16_pair", include_str!("shared/f16_pair.wgsl")),
    ("fixed_point", include_str!("shared/fixed_point.wgsl")),
    ("from_arguments", include_str!("shared/from_arguments.wgsl")),
    ("gemm/nibbles_f16", include_str!("gemm/nibbles_f16.wgsl")),
    ("gemv/butterfly_sums", include_str!("gemv/pieces/butterfly_sums.wgsl")),
    ("gemv/copy_x", include_str!("gemv/pieces/copy_x.wgsl")),
    ("gemv/float_step", include_str!("gemv/pieces/float_step.wgsl")),
    ("gemv/inputs", include_str!("gemv/pieces/inputs.wgsl")),
    ("gemv/integer_step", include_str!("gemv/pieces/integer_step.wgsl")),
    ("gemv/load_squares", include_str!("gemv/pieces/load_squares.wgsl")),
    ("gemv/place", include_str!("gemv/pieces/place.wgsl")),
    ("gemv/product", include_str!("gemv/pieces/product.wgsl")),
    ("gemv/reduce", include_str!("gemv/pieces/reduce.wgsl")),
    ("gemv/reduce_in_cluster", include_str!("gemv/pieces/reduce_in_cluster.wgsl")),
    ("gemv/reduce_in_memory", include_str!("gemv/pieces/reduce_in_memory.wgsl")),
    ("gemv/reduce_over_clusters", include_str!("gemv/pieces/reduce_over_clusters.wgsl")),
    ("gemv/squares", include_str!("gemv/pieces/squares.wgsl")),
    ("gemv/sum_squares", include_str!("gemv/pieces/sum_squares.wgsl")),
    ("gemv/team", include_str!("gemv/pieces/team.wgsl")),
    ("invocation", include_str!("shared/invocation.wgsl")),
    ("kv", include_str!("shared/kv.wgsl")),
    ("kv_pages", include_str!("shared/kv_pages.wgsl")),
    ("key_range", include_str!("shared/key_range.wgsl")),
    ("load_x", include_str!("shared/load_x.wgsl")),
    ("reduce", include_str!("shared/reduce.wgsl")),
    ("sample/find_best", include_str!("sample/pieces/find_best.wgsl")),
    ("sample/keys", include_str!("sample/pieces/keys.wgsl")),
    ("sample/place", include_str!("sample/pieces/place.wgsl")),
    ("sample/reduce_best", include_str!("sample/pieces/reduce_best.wgsl")),
    ("sample/resolve", include_str!("sample/pieces/resolve.wgsl")),
    ("sample/rows", include_str!("sample/pieces/rows.wgsl")),
    ("soft_cap", include_str!("shared/soft_cap.wgsl")),
    ("subgroup_sums", include_str!("shared/subgroup_sums.wgsl")),
    ("team_attention", include_str!("shared/team_attention.wgsl")),
];

/// The WGSL of `text` in `variant`. Panics on a malformed directive, with the kernel's name.
pub(crate) fn expand(kernel: &str, text: &str, variant: &Variant) -> String {
    let mut out = String::with_capacity(2 * text.len());
    if variant.has_flag("COOPERATIVE") {
        out.push_str("enable f16;\nenable wgpu_cooperative_matrix;\n");
    }
    for (name, value) in variant.all_constants() {
        out.push_str(&format!("const {name}: u32 = {value}u;\n"));
    }
    let mut expansion = Expansion { kernel, variant, imported: Vec::new() };
    expansion.text(text, &Loops::new(), &mut out);
    out
}

/// Hashes the files that several kernels share. Results kept for one version of the kernels depend on them.
pub(crate) fn hash_shared(hasher: &mut impl std::hash::Hasher) {
    let unpack = all_formats().into_iter().map(crate::WeightFormat::unpack_wgsl);
    SHARED.iter().map(|(_, text)| *text).chain(unpack).for_each(|text| hasher.write(text.as_bytes()));
}

/// The values of the loops around a line.
type Loops = HashMap<char, u32>;

struct Expansion<'a> {
    kernel: &'a str,
    variant: &'a Variant,
    imported: Vec<String>,
}

impl Expansion<'_> {
    fn text(&mut self, text: &str, loops: &Loops, out: &mut String) {
        self.lines(&text.lines().collect::<Vec<_>>(), loops, out);
    }

    fn lines(&mut self, lines: &[&str], loops: &Loops, out: &mut String) {
        let mut at = 0;
        while at < lines.len() {
            let line = &with_values(lines[at].trim(), loops);
            if let Some(name) = line.strip_prefix("#import ") {
                self.import(name.trim(), out);
            } else if let Some(name) = line.strip_prefix("#include ") {
                self.text(self.file(name.trim()), loops, out);
            } else if line.starts_with("#ifdef ") || line.starts_with("#ifndef ") {
                let (then, otherwise, next) = self.branches(lines, at);
                let flag = line.split_whitespace().nth(1).unwrap_or_default();
                let is_taken = self.variant.has_flag(flag) == line.starts_with("#ifdef ");
                self.lines(if is_taken { then } else { otherwise }, loops, out);
                at = next;
                continue;
            } else if let Some(header) = line.strip_prefix("#for ") {
                let end = self.closing(lines, at, "#for ", "#endfor");
                let (name, from, to) = self.loop_header(header);
                for value in from..to {
                    let mut loops = loops.clone();
                    loops.insert(name, value);
                    self.lines(&lines[at + 1..end], &loops, out);
                }
                at = end + 1;
                continue;
            } else {
                assert!(!line.starts_with('#'), "{}: unknown directive: {line}", self.kernel);
                out.push_str(&with_values(lines[at], loops));
                out.push('\n');
            }
            at += 1;
        }
    }

    fn import(&mut self, name: &str, out: &mut String) {
        if !self.imported.iter().any(|done| done == name) {
            self.imported.push(name.to_string());
            self.text(self.file(name), &Loops::new(), out);
        }
    }

    /// The text of a shared file, or of the weights' layout.
    fn file(&self, name: &str) -> &'static str {
        if name == "unpack" {
            return self.variant.weights.expect("a kernel that imports `unpack` names its weights").unpack_wgsl();
        }
        let found = SHARED.iter().find(|(shared, _)| *shared == name);
        found.unwrap_or_else(|| panic!("{}: no shared file is called `{name}`", self.kernel)).1
    }

    /// The lines of both branches of the condition at `at`, and the index of the line after its end.
    fn branches<'l, 't>(&self, lines: &'l [&'t str], at: usize) -> (&'l [&'t str], &'l [&'t str], usize) {
        let mut depth = 0;
        let mut middle = None;
        for (i, line) in lines.iter().enumerate().skip(at) {
            match line.trim() {
                l if l.starts_with("#ifdef ") || l.starts_with("#ifndef ") => depth += 1,
                "#else" if depth == 1 => middle = Some(i),
                "#endif" => {
                    depth -= 1;
                    if depth == 0 {
                        let then = &lines[at + 1..middle.unwrap_or(i)];
                        let otherwise = middle.map_or(&lines[i..i], |m| &lines[m + 1..i]);
                        return (then, otherwise, i + 1);
                    }
                }
                _ => {}
            }
        }
        panic!("{}: `{}` has no #endif", self.kernel, lines[at].trim())
    }

    /// The index of the line that closes the block opened at `at`.
    fn closing(&self, lines: &[&str], at: usize, open: &str, close: &str) -> usize {
        let mut depth = 0;
        for (i, line) in lines.iter().enumerate().skip(at) {
            let line = line.trim();
            if line.starts_with(open) {
                depth += 1;
            } else if line == close {
                depth -= 1;
                if depth == 0 {
                    return i;
                }
            }
        }
        panic!("{}: `{}` has no {close}", self.kernel, lines[at].trim())
    }

    /// `v in A..B`.
    fn loop_header(&self, header: &str) -> (char, u32, u32) {
        let parsed = header.split_once(" in ").and_then(|(name, range)| {
            let mut letters = name.trim().chars();
            let (name, None) = (letters.next()?, letters.next()) else { return None };
            let (from, to) = range.split_once("..")?;
            Some((name, self.number(from)?, self.number(to)?))
        });
        parsed.unwrap_or_else(|| panic!("{}: `#for {header}` is not `v in A..B`", self.kernel))
    }

    fn number(&self, text: &str) -> Option<u32> {
        let text = text.trim();
        text.parse().ok().or_else(|| self.variant.constant(text))
    }
}

/// The line with `$v` replaced by the value of each loop.
fn with_values(line: &str, loops: &Loops) -> String {
    let mut out = String::with_capacity(line.len());
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letters.peek().and_then(|name| loops.get(name)) {
            Some(value) if letter == '$' => {
                letters.next();
                out.push_str(&value.to_string());
            }
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str, variant: &Variant) -> String {
        expand("test", text, variant)
    }

    #[test]
    fn constants_come_first() {
        let variant = Variant::new().constant_is("ROWS", 4);
        assert_eq!(expanded("let a = ROWS;", &variant), "const ROWS: u32 = 4u;\nlet a = ROWS;\n");
    }

    #[test]
    fn loops_are_unrolled_and_nested() {
        let variant = Variant::new().constant_is("ROWS", 2);
        let text = "#for r in 0..ROWS\n#for i in 1..3\nlet a$r_$i = $ru;\n#endfor\n#endfor";
        let expected = "const ROWS: u32 = 2u;\nlet a0_1 = 0u;\nlet a0_2 = 0u;\nlet a1_1 = 1u;\nlet a1_2 = 1u;\n";
        assert_eq!(expanded(text, &variant), expected);
    }

    #[test]
    fn loops_reach_into_directives() {
        let variant = Variant::new().constant_is("ROWS0", 1).constant_is("ROWS1", 2).flag("ADD1");
        let text = "#for t in 0..2\n#for r in 0..ROWS$t\n#ifdef ADD$t\n$t$r\n#endif\n#endfor\n#endfor";
        assert!(expanded(text, &variant).ends_with(";\n10\n11\n"));
    }

    #[test]
    fn flags_choose_a_branch() {
        let text = "#ifdef A\n1\n#ifndef B\n2\n#else\n3\n#endif\n#else\n4\n#endif\n5";
        assert_eq!(expanded(text, &Variant::new().flag("A")), "1\n2\n5\n");
        assert_eq!(expanded(text, &Variant::new().flag("A").flag("B")), "1\n3\n5\n");
        assert_eq!(expanded(text, &Variant::new()), "4\n5\n");
    }

    #[test]
    fn an_import_is_inserted_once_and_an_include_each_time() {
        let count = |text: &str| expanded(text, &Variant::new()).matches("let workgroups").count();
        assert_eq!(count("#import from_arguments\n#import from_arguments"), 1);
        assert_eq!(count("#for i in 0..3\n#include from_arguments\n#endfor"), 3);
    }

    #[test]
    #[should_panic(expected = "has no #endif")]
    fn an_open_condition_is_refused() {
        expanded("#ifdef A\n1", &Variant::new());
    }
}
