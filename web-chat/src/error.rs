//! [`js_error`]: converts an engine error to a JavaScript `Error` with the kind as `name`, and a `hint`.

use infer_core::{Error, GpuError};
use js_sys::Reflect;
use model_format::Error as FormatError;
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

/// Result of a function that JavaScript calls.
pub type JsResult<T> = Result<T, JsValue>;

/// Converts an engine error to the JavaScript error that is thrown.
pub fn js_error(error: impl Into<Error>) -> JsValue {
    let error = error.into();
    let kind = match &error {
        Error::Gpu(GpuError::NoAdapter | GpuError::NoSuchAdapter { .. } | GpuError::OpenDevice { .. }) => "NoGpu",
        Error::Gpu(GpuError::BufferTooLarge { .. } | GpuError::OutOfMemory { .. }) => "OutOfMemory",
        Error::Gpu(GpuError::DeviceLost { .. }) => "DeviceLost",
        Error::Gpu(_) => "Gpu",
        Error::Format(FormatError::MissingFile { .. }) => "MissingFile",
        Error::Format(FormatError::Io { .. }) => "Storage",
        Error::Format(FormatError::UnsupportedArchitecture { .. } | FormatError::UnknownFormat { .. }) => "NotRunnable",
        Error::Format(_) | Error::Tokenizer { .. } | Error::TemplateToken { .. } => "DamagedFile",
        Error::ContextFull { .. } => "ContextFull",
        Error::BadParameter { .. } | Error::BiasOutOfRange { .. } | Error::TokenOutOfRange { .. } => "BadParameter",
        _ => "Engine",
    };
    thrown(kind, &model_format::error::messages(&error), error.hint())
}

/// Error for a request that is not valid JSON of the expected form.
pub fn bad_request(reason: &serde_json::Error) -> JsValue {
    thrown("BadParameter", &format!("the request cannot be read: {reason}"), None)
}

fn thrown(kind: &str, message: &str, hint: Option<String>) -> JsValue {
    let error = js_sys::Error::new(message);
    error.set_name(kind);
    if let Some(hint) = hint {
        // Setting a property of a fresh object does not fail.
        let _ = Reflect::set(&error, &"hint".into(), &hint.into());
    }
    error.into()
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(message: &str);
}

/// Writes panic messages to the console before the panic ends the engine.
#[wasm_bindgen(start)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| console_error(&panic.to_string())));
}
