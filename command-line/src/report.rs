//! Reports as JSON on stdout.

use std::io::{self, Write};

use serde::Serialize;

/// Prints a report as one indented JSON value.
pub fn print_json(report: &impl Serialize) -> io::Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(report).expect("a report serializes"))
}
