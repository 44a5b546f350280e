//! [`WebGpu`]: the browser's device, open.

use std::rc::Rc;

use infer_core::{Gpu, OpenOptions, Selection};
use js_sys::Promise;
use serde_json::json;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::JsFuture;

use crate::error::{JsResult, js_error};

/// The browser's device, open.
#[wasm_bindgen]
pub struct WebGpu {
    pub(crate) gpu: Gpu,
}

#[wasm_bindgen]
extern "C" {
    /// What makes pipelines side by side: `engine/pipelines.ts`.
    pub type Pipelines;
    /// Calls `ask`, which asks the device for pipelines, and promises that they are made.
    #[wasm_bindgen(method)]
    fn gather(this: &Pipelines, ask: &mut dyn FnMut()) -> Promise;
}

#[wasm_bindgen]
impl WebGpu {
    /// Opens the device. `subgroups`: the caller sees to it that the browser's device is asked for them. `software_kernels`:
    /// whether a software device gets those that are made for such; without, it has a GPU's. `pipelines`: who makes them side
    /// by side; without, they are made one after the other.
    pub async fn open(subgroups: bool, software_kernels: bool, pipelines: Option<Pipelines>) -> JsResult<WebGpu> {
        let options = OpenOptions { subgroups, software_kernels, ..OpenOptions::default() };
        let gpu = Gpu::open(&Selection::Auto, options).await.map_err(js_error)?;
        if let Some(pipelines) = pipelines {
            gpu.gather_with(Rc::new(move |ask| {
                let made = JsFuture::from(pipelines.gather(&mut || ask()));
                // What could not be made is told of when it is wanted.
                Box::pin(async move { drop(made.await) })
            }));
        }
        Ok(WebGpu { gpu })
    }

    /// What the engine uses of the device, as JSON.
    pub fn info(&self) -> String {
        let caps = self.gpu.caps();
        let info = json!({
            "isSoftware": caps.is_software,
            "f16": caps.f16,
            "subgroups": caps.subgroups.map(|sizes| [sizes.min, sizes.max]),
            "timestamps": caps.timestamps,
            "maxBinding": caps.max_binding,
            "maxBuffer": caps.max_buffer,
        });
        info.to_string()
    }

    /// Bytes of device memory that the engine holds.
    #[wasm_bindgen(js_name = bytesInUse)]
    pub fn bytes_in_use(&self) -> f64 {
        self.gpu.bytes_in_use() as f64
    }

    /// Bytes per second of a large copy on the device, read and written bytes together. Keeps the device busy a moment.
    #[wasm_bindgen(js_name = copyBandwidth)]
    pub async fn copy_bandwidth(&self) -> JsResult<f64> {
        self.gpu.copy_bandwidth().await.map_err(js_error)
    }
}
