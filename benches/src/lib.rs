//! What the measuring programs share: ending with a clear message.

/// The Rust example of the book, compiled as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embed-rust.md")]
struct EmbedRust;

/// Prints an error and its hint to stderr and ends the process with exit code 1, or returns.
pub fn exit_with(result: anyhow::Result<()>) {
    let Err(error) = result else { return };
    eprintln!("error: {}", model_format::error::messages(error.as_ref()));
    let hint = error.chain().find_map(|cause| {
        None.or_else(|| cause.downcast_ref::<model_hub::Error>().map(model_hub::Error::hint))
            .or_else(|| cause.downcast_ref::<infer_core::Error>().map(infer_core::Error::hint))
            .or_else(|| cause.downcast_ref::<model_format::Error>().map(model_format::Error::hint))
            .or_else(|| cause.downcast_ref::<calib_data::Error>().map(calib_data::Error::hint))
            .flatten()
    });
    if let Some(hint) = hint {
        eprintln!("\nhint: {hint}");
    }
    std::process::exit(1);
}
