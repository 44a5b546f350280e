//! [`WebGpu`]: an open device of the browser.

use std::rc::Rc;

use infer_core::{Gpu, OpenOptions, Selection};
use js_sys::Promise;
use serde_json::json;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::JsFuture;

use crate::error::{JsResult, js_error};

/// An open device of the browser.
#[wasm_bindgen]
pub struct WebGpu {
    pub(crate) gpu: Gpu,
}

#[wasm_bindgen]
extern "C" {
    /// Compiles pipelines in parallel: `engine/pipelines.ts`.
    pub type Pipelines;
    /// Calls `request`, which asks the device for pipelines. Resolves when they are compiled.
    #[wasm_bindgen(method)]
    fn compile(this: &Pipelines, request: &mut dyn FnMut()) -> Promise;
}

#[wasm_bindgen]
impl WebGpu {
    /// Opens the device.
    ///
    /// - `subgroups`: use subgroups. The caller must add this feature to the browser's device request.
    /// - `software_kernels`: a software device uses the kernel variants for software devices, instead of a GPU's.
    /// - `pipelines`: compiles pipelines in parallel. Without it, they are compiled one by one.
    pub async fn open(subgroups: bool, software_kernels: bool, pipelines: Option<Pipelines>) -> JsResult<WebGpu> {
        let options = OpenOptions { subgroups, software_kernels, ..OpenOptions::default() };
        let gpu = Gpu::open(&Selection::Auto, options).await.map_err(js_error)?;
        if let Some(pipelines) = pipelines {
            gpu.gather_with(Rc::new(move |request| {
                let compiled = JsFuture::from(pipelines.compile(&mut || request()));
                // A failed compilation is reported when its pipeline is used.
                Box::pin(async move { drop(compiled.await) })
            }));
        }
        Ok(WebGpu { gpu })
    }

    /// The features and limits that the engine uses, as JSON.
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

    /// Device memory that the engine uses, in bytes.
    #[wasm_bindgen(js_name = bytesInUse)]
    pub fn bytes_in_use(&self) -> f64 {
        self.gpu.bytes_in_use() as f64
    }

    /// Bandwidth of a large copy on the device, in bytes per second, reads plus writes. Takes a moment.
    #[wasm_bindgen(js_name = copyBandwidth)]
    pub async fn copy_bandwidth(&self) -> JsResult<f64> {
        self.gpu.copy_bandwidth().await.map_err(js_error)
    }
}
