//! The errors of the libraries that `gptq-quant` calls: their hints, and the one that Ctrl-C causes.

use command_line::{Cause, HintOf};

/// Hints of errors that `command_line` does not know.
pub const HINTS: &[HintOf] = &[
    |cause| cause.downcast_ref::<gptq_quant::Error>()?.hint(),
    |cause| cause.downcast_ref::<calib_data::Error>()?.hint(),
    |cause| cause.downcast_ref::<weight_convert::Error>()?.hint(),
    |cause| cause.downcast_ref::<infer_core::Error>()?.hint(),
];

/// True if a library stopped because the user asked it to.
pub fn is_cancelled(cause: &Cause) -> bool {
    matches!(cause.downcast_ref(), Some(gptq_quant::Error::Cancelled))
        || matches!(cause.downcast_ref(), Some(weight_convert::Error::Cancelled))
}

#[cfg(test)]
mod tests {
    use command_line::is_interruption;

    use super::*;

    #[test]
    fn only_a_cancelled_run_is_an_interruption() {
        let check = |error: anyhow::Error, expected: bool| {
            assert_eq!(is_interruption(&error, is_cancelled), expected, "{error:#}");
        };
        check(anyhow::Error::from(gptq_quant::Error::Cancelled).context("in the middle"), true);
        check(weight_convert::Error::Cancelled.into(), true);
        check(model_hub::Error::Cancelled.into(), true);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = model_format::Error::Io { action: "write", path: "a".into(), source: full };
        check(gptq_quant::Error::Format(full).into(), false);
        check(anyhow::anyhow!("interrupted"), false);
    }
}
