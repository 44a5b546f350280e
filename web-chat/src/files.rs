//! [`JsFiles`]: a model's files, read by JavaScript from the browser's storage or from a local folder.

use std::{io, ops::Range, path::PathBuf};

use js_sys::Uint8Array;
use model_format::{Error, ModelFiles, Result};
use wasm_bindgen::{JsCast, JsValue, prelude::wasm_bindgen};

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/** A model's files. */
export interface ModelFiles {
  /** Size in bytes, or undefined if the file does not exist. */
  size(name: string): Promise<number | undefined>;
  /** The bytes from `start` to `end`, without `end`. */
  read(name: string, start: number, end: number): Promise<Uint8Array>;
  /** Name of the folder in error messages. */
  location(): string;
}
"#;

#[wasm_bindgen]
extern "C" {
    /// A model's files, in JavaScript.
    #[wasm_bindgen(typescript_type = "ModelFiles")]
    pub type JsFiles;

    #[wasm_bindgen(method, catch, js_name = size)]
    async fn js_size(this: &JsFiles, name: &str) -> std::result::Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch, js_name = read)]
    async fn js_read(this: &JsFiles, name: &str, start: f64, end: f64) -> std::result::Result<JsValue, JsValue>;
    #[wasm_bindgen(method, js_name = location)]
    fn js_location(this: &JsFiles) -> String;
}

impl ModelFiles for JsFiles {
    async fn size(&self, name: &str) -> Result<u64> {
        let size = self.js_size(name).await.map_err(|thrown| read_error(name, &thrown))?;
        match size.as_f64() {
            Some(size) => Ok(size as u64),
            None => Err(Error::MissingFile { file: name.into(), folder: self.location() }),
        }
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let read = self.js_read(name, range.start as f64, range.end as f64).await;
        let bytes: Uint8Array = read.map_err(|thrown| read_error(name, &thrown))?.unchecked_into();
        let (found, expected) = (range.start + u64::from(bytes.length()), range.end);
        if found != expected {
            return Err(Error::FileSize { file: name.into(), found, expected });
        }
        Ok(bytes.to_vec())
    }

    fn location(&self) -> String {
        self.js_location()
    }
}

fn read_error(name: &str, thrown: &JsValue) -> Error {
    let reason = thrown.dyn_ref::<js_sys::Error>().map_or_else(|| format!("{thrown:?}"), |e| String::from(e.message()));
    Error::Io { action: "read", path: PathBuf::from(name), source: io::Error::other(reason) }
}
