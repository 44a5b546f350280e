//! The end of a program: error message, hint and exit code.

use std::{error::Error, io, process::ExitCode};

/// Exit code if the reader of the output closed it, as in `chat-cli ... | head`.
const BROKEN_PIPE: u8 = 141;

/// One error in a chain of causes.
pub type Cause = dyn Error + 'static;

/// Returns the hint of a cause of one type: `|cause| cause.downcast_ref::<infer_core::Error>()?.hint()`.
pub type HintOf = fn(&Cause) -> Option<String>;

/// Prints the error, if any, and returns the exit code. `own` finds the hints of errors that [`hint`] does not know.
pub fn finish(result: anyhow::Result<ExitCode>, own: &[HintOf]) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            print_error(&error, own);
            ExitCode::FAILURE
        }
    }
}

/// Prints `error: ...` and, after a blank line, `hint: ...` to stderr.
pub fn print_error(error: &anyhow::Error, own: &[HintOf]) {
    eprintln!("error: {}", model_format::error::messages(error.as_ref()));
    if let Some(hint) = hint(error, own) {
        eprintln!("\nhint: {hint}");
    }
}

/// The user's next step: the first hint in the chain of causes. Knows the errors of `model_hub` and `model_format`; `own`
/// lists the other libraries of the program.
pub fn hint(error: &anyhow::Error, own: &[HintOf]) -> Option<String> {
    const COMMON: [HintOf; 2] = [
        |cause| cause.downcast_ref::<model_hub::Error>()?.hint(),
        |cause| cause.downcast_ref::<model_format::Error>()?.hint(),
    ];
    error.chain().find_map(|cause| own.iter().chain(&COMMON).find_map(|hint_of| hint_of(cause)))
}

/// True if the user's Ctrl-C caused the error. Knows the downloads of `model_hub`; `own` knows the other libraries of the
/// program.
pub fn is_interruption(error: &anyhow::Error, own: fn(&Cause) -> bool) -> bool {
    error.chain().any(|cause| own(cause) || matches!(cause.downcast_ref(), Some(model_hub::Error::Cancelled)))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_broken_pipe))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    /// A full disk: not the user's wish, though `model_format` reports it.
    fn full() -> anyhow::Error {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        model_format::Error::Io { action: "write", path: "a".into(), source }.into()
    }

    #[test]
    fn only_a_cancelled_operation_is_an_interruption() {
        let cancelled = || anyhow::Error::from(model_hub::Error::Cancelled);
        assert!(is_interruption(&cancelled(), |_| false));
        assert!(is_interruption(&cancelled().context("in the middle"), |_| false));
        assert!(!is_interruption(&full(), |_| false));
        assert!(!is_interruption(&anyhow!("stopped"), |_| false));
        assert!(is_interruption(&full(), |cause| cause.is::<model_format::Error>()));
    }

    #[test]
    fn the_first_hint_of_the_chain_is_shown() {
        let own: [HintOf; 1] = [|cause| cause.downcast_ref::<std::fmt::Error>().map(|_| "format it".into())];
        let unknown = || Err::<(), _>(std::fmt::Error).context("above").unwrap_err();
        assert_eq!(hint(&unknown(), &[]), None);
        assert_eq!(hint(&unknown(), &own).as_deref(), Some("format it"));
        let below = full().context("above");
        assert_eq!(hint(&below, &own), hint(&full(), &[]));
        assert!(hint(&below, &[]).is_some());
    }

    #[test]
    fn a_closed_output_has_its_own_exit_code() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(finish(Err(anyhow::Error::from(closed).context("printing")), &[]), ExitCode::from(141));
        assert_eq!(finish(Ok(ExitCode::from(3)), &[]), ExitCode::from(3));
        assert_eq!(finish(Err(anyhow!("a test's error")), &[]), ExitCode::FAILURE);
    }
}
