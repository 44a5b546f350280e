//! The errors of this program's library: their hints, and the one that Ctrl-C causes.

use command_line::{Cause, HintOf};

/// Hints of errors that `command_line` does not know.
pub const HINTS: &[HintOf] = &[|cause| cause.downcast_ref::<weight_convert::Error>()?.hint()];

/// True if the library stopped because the user asked it to.
pub fn is_cancelled(cause: &Cause) -> bool {
    matches!(cause.downcast_ref(), Some(weight_convert::Error::Cancelled))
}

#[cfg(test)]
mod tests {
    use command_line::is_interruption;

    use super::*;

    /// A transparent error passes on the causes of its content, so a full disk is looked for inside one too.
    #[test]
    fn only_a_cancelled_conversion_is_an_interruption() {
        let check = |error: anyhow::Error, expected: bool| {
            assert_eq!(is_interruption(&error, is_cancelled), expected, "{error:#}");
        };
        check(anyhow::Error::from(weight_convert::Error::Cancelled).context("in the middle"), true);
        check(model_hub::Error::Cancelled.into(), true);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = model_format::Error::Io { action: "write", path: "a".into(), source: full };
        check(weight_convert::Error::Format(full).into(), false);
        check(anyhow::anyhow!("stopped"), false);
    }
}
