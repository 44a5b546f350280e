//! The embedding table and the head. They are quantized before the first layer, with the float model's last hidden states as the
//! head's inputs.

use infer_core::ops::{Forward, Loading};
use model_format::{Param, Role};

use super::{
    activations::{InputCache, Stored},
    layer::matrix_roles,
    observe::Pass,
    state::Walk,
};
use crate::{
    calibrate::{Calibrate, SumShape},
    error::Result,
    solve::hessian::Hessian,
    store::Store,
};

impl<O: Calibrate> Walk<'_, O> {
    /// Quantizes the embedding table and the head as the settings say. Returns the dequantized table, `None` if it stays float.
    ///
    /// `head`: the Hessian of the head's inputs, if known.
    pub(super) async fn quantize_ends<'p>(
        &mut self,
        store: &mut dyn Store,
        param: impl Fn(Role) -> &'p Param,
        mut head: Option<Hessian>,
    ) -> Result<Option<Vec<f32>>> {
        let mut values = None;
        for (i, &role) in self.settings.end_roles(self.config).iter().enumerate() {
            let param = param(role);
            values = store.values(param)?;
            if values.is_some() || self.settings.options(param)?.is_none() {
                continue;
            }
            // The first is quantized for its outputs, a table after it for its values.
            let known = if i == 0 { head.take() } else { Some(Hessian::empty(self.config.hidden_size)) };
            let hessian = match known {
                Some(hessian) => {
                    let on_device = self.ops.inner().place(&hessian)?;
                    (hessian, on_device)
                }
                None => self.observe_head().await?,
            };
            let (quantized, _) = self.solve(store, param, hessian).await?;
            self.finish_stage();
            values = Some(quantized.dequantize().into_raw_vec_and_offset().0);
        }
        Ok(values)
    }

    /// Runs the float model to its end and returns the Hessian of the head's inputs. Eight-bit operations are exact enough: nothing
    /// is compared with these inputs.
    async fn observe_head(&mut self) -> Result<(Hessian, O::DeviceHessian)> {
        let exact = self.ops.inner().eight_bit().map(|eight_bit| std::mem::replace(self.ops.inner(), eight_bit));
        self.add_stream(self.read(Role::Embedding)?).await?;
        for layer in 0..self.config.num_hidden_layers {
            self.enter(layer)?;
            let matrices = matrix_roles(layer).map(|role| self.float_matrix(role));
            let matrices = matrices.into_iter().collect::<Result<_>>()?;
            self.run(matrices, Pass::WHOLE, InputCache::Unused, None).await?;
            self.finish_stage();
        }
        let hidden_size = self.config.hidden_size;
        let norm = self.read(Role::FinalNorm)?;
        let norm = self.ops.upload(1, hidden_size, &norm)?;
        let weights = self.token_weights();
        let shape = SumShape { cols: hidden_size, weights, with_drift: false, stream_rows: None };
        let mut sums = self.ops.inner().new_sums(shape)?;
        for stored in std::mem::take(&mut self.streams[0].hidden) {
            let x = match stored {
                Stored::Device(x) => x,
                Stored::Host(values) => self.ops.upload(values.len() / hidden_size, hidden_size, &values)?,
            };
            let normed = self.ops.rms_norm(&x, &norm, self.config.rms_norm_eps as f32).known();
            self.ops.inner().add(&mut sums, &normed, None, None).await?;
        }
        if let Some(exact) = exact {
            *self.ops.inner() = exact;
        }
        Ok(self.ops.inner().finish(sums, &[]).await?)
    }
}
