//! Every command in a fenced block of a document must parse with its program's own flags.

#[path = "../../xtask/src/commands.rs"]
mod commands;

#[allow(dead_code, unused_imports, reason = "only the flags are used here")]
#[path = "../../chat-cli/src/arguments/mod.rs"]
mod chat_cli_arguments;

#[allow(dead_code, reason = "only the flags are used here")]
#[path = "../../gptq-quant/src/cli/args.rs"]
mod gptq_quant_arguments;

#[allow(dead_code, reason = "only the flags are used here")]
#[path = "../../weight-convert/src/cli/args.rs"]
mod weight_convert_arguments;

use std::path::Path;

use clap::Parser;

/// Parses a command line, program name included.
type Parse = fn(&[&str]) -> Result<(), String>;

const PROGRAMS: &[(&str, Parse)] = &[
    ("chat-cli", |words| parse::<chat_cli_arguments::Arguments>(words).map(drop)),
    ("weight-convert", |words| parse::<weight_convert_arguments::Args>(words).map(drop)),
    ("gptq-quant", |words| {
        let parsed = parse::<gptq_quant_arguments::Args>(words)?;
        parsed.settings().map(drop).map_err(|gptq_quant_arguments::Contradiction(message)| message)
    }),
];

fn parse<T: Parser>(words: &[&str]) -> Result<T, String> {
    T::try_parse_from(words).map_err(|error| error.to_string())
}

#[test]
fn documented_commands_are_parsed_by_their_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let commands = commands::documented(root).unwrap();
    let mut wrong = String::new();
    for (program, parse) in PROGRAMS {
        // Skip program names in diagrams.
        let is_command = |command: &&commands::Command| command.program == *program && !command.arguments.is_empty();
        let of_program: Vec<_> = commands.iter().filter(is_command).collect();
        assert!(of_program.len() >= 5, "only {} commands of {program} found", of_program.len());
        for command in of_program {
            let words: Vec<&str> =
                std::iter::once(*program).chain(command.arguments.iter().map(String::as_str)).collect();
            if let Err(error) = parse(&words) {
                wrong.push_str(&format!("{}: {error}\n", command.place));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn a_wrong_command_is_not_parsed() {
    let check = |words: &[&str], expected: bool| {
        let (_, parse) = PROGRAMS.iter().find(|(program, _)| *program == words[0]).unwrap();
        assert_eq!(parse(words).is_ok(), expected, "{words:?}");
    };
    check(&["chat-cli", "chat", "demo", "-p", "Hello"], true);
    check(&["chat-cli", "chat", "demo", "--temperatur", "0"], false);
    check(&["chat-cli", "chat", "demo", "--json"], false);
    check(&["weight-convert", "convert", "demo", "-o", "out"], true);
    check(&["weight-convert", "convert", "demo"], false);
    check(&["gptq-quant", "demo", "-o", "out", "--grid", "q4f16_1"], true);
    check(&["gptq-quant", "demo", "-o", "out", "--grid", "q4f16_1", "--bits", "4"], false);
}
