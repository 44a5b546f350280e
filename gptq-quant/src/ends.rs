//! The embedding table and the head, which are quantized before the first layer: what goes into the head is what the float model
//! makes of the text.

use infer_core::ops::{Forward, Loading};
use model_format::{Param, Role};

use crate::{
    Calibrate, Hessian, Result, Store,
    pipeline::{WHOLE_LAYER, Walk, matrix_roles},
    streams::{Held, Kept},
    work::{Step, end_roles},
};

impl<O: Calibrate> Walk<'_, O> {
    /// The embedding table and the head, where they are to be quantized: the values of the table.
    ///
    /// `seen`: the Hessian of the head's inputs, if it is known.
    pub(crate) async fn ends<'p>(
        &mut self,
        store: &mut dyn Store,
        param: impl Fn(Role) -> &'p Param,
        mut seen: Option<Hessian>,
    ) -> Result<Option<Vec<f32>>> {
        let mut hessian = None;
        let mut values = None;
        for (i, &role) in end_roles(self.config, self.settings).iter().enumerate() {
            let param = param(role);
            values = store.values(param)?;
            if values.is_some() || self.settings.options(param)?.is_none() {
                continue;
            }
            if i == 0 {
                hessian = Some(match seen.take() {
                    Some(seen) => {
                        let resident = self.ops.inner().place(&seen)?;
                        (seen, resident)
                    }
                    None => self.observe_head().await?,
                });
            }
            let hessian = match hessian.take() {
                Some(hessian) => hessian,
                None => {
                    let hessian = Hessian::empty(self.config.hidden_size);
                    let resident = self.ops.inner().place(&hessian)?;
                    (hessian, resident)
                }
            };
            let (quantized, _) = self.solve(store, param, hessian, Step::Table).await?;
            values = Some(quantized.dequantize().into_raw_vec_and_offset().0);
        }
        Ok(values)
    }

    /// Runs the float model to its end: the Hessian of the head's inputs.
    ///
    /// Eight bits are enough for it: nothing is compared with these inputs.
    async fn observe_head(&mut self) -> Result<(Hessian, O::Resident)> {
        self.is_on_way_to_head = true;
        let exact = self.ops.inner().rounded().map(|rounded| std::mem::replace(self.ops.inner(), rounded));
        let stream = self.embed(self.read(Role::Embedding)?).await?;
        self.streams.push(stream);
        for layer in 0..self.config.num_hidden_layers {
            self.enter(layer)?;
            let matrices =
                matrix_roles(layer).map(|role| self.float_matrix(role)).into_iter().collect::<Result<_>>()?;
            self.run(matrices, WHOLE_LAYER, Kept::Neither, None).await?;
        }
        self.is_on_way_to_head = false;
        let hidden_size = self.config.hidden_size;
        let norm = self.read(Role::FinalNorm)?;
        let norm = self.ops.upload(1, hidden_size, &norm)?;
        let weights = self.token_weights();
        let mut sums = self.ops.inner().new_sums(hidden_size, weights, false)?;
        for held in std::mem::take(&mut self.streams[0].hidden) {
            let x = match held {
                Held::Device(x) => x,
                Held::Host(values) => self.ops.upload(values.len() / hidden_size, hidden_size, &values)?,
            };
            let normed = self.ops.rms_norm(&x, &norm, self.config.rms_norm_eps as f32).known();
            self.ops.inner().add(&mut sums, &normed, None).await?;
        }
        if let Some(exact) = exact {
            *self.ops.inner() = exact;
        }
        Ok(self.ops.inner().finish(sums, &[]).await?)
    }
}
