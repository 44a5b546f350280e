//! [`ObserveOps`]: wraps any [`Ops`] to run a decoder layer from one matrix to another and keep the inputs of the last.
//!
//! The walk needs the inputs of a layer's first matrix, quantizes it, then needs the inputs of the second as the quantized first
//! produces them, and so on. The decoder's code does not change. Operations outside the part that runs compute nothing.

use std::rc::Rc;

use infer_core::{
    Result,
    ops::{AttentionShape, Backend, Forward, KvShape, Loading, Losses, Ops, RowSpan},
};
use model_format::{Role, Weight, decoder_config};

/// The part of a layer that a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// The first matrix to multiply with. Earlier matrices are skipped, because the residual stream includes their effect.
    /// `None`: from the beginning.
    pub start: Option<Role>,
    /// The matrix whose input is kept. It and everything after it is skipped. `None`: to the end.
    pub stop: Option<Role>,
}

impl Pass {
    /// The whole layer.
    pub const WHOLE: Pass = Pass { start: None, stop: None };
}

/// An activation, or a mark that this pass does not compute it.
pub enum Activation<T> {
    /// The value. Shared between the decoder and the observer.
    Known(Rc<T>),
    /// Outside the part that runs.
    Skipped,
}

impl<T> Activation<T> {
    fn new(value: T) -> Activation<T> {
        Activation::Known(Rc::new(value))
    }

    /// The value. Panics if it was skipped.
    pub fn value(&self) -> &T {
        match self {
            Activation::Known(value) => value,
            Activation::Skipped => panic!("this pass did not compute it"),
        }
    }

    /// Moves the value out. Panics if it was skipped.
    pub fn known(self) -> Rc<T> {
        match self {
            Activation::Known(value) => value,
            Activation::Skipped => panic!("this pass did not compute it"),
        }
    }

    /// Applies an operation in place, unless the value was skipped.
    fn change(&mut self, operation: impl FnOnce(&mut T)) {
        if let Activation::Known(value) = self {
            operation(Rc::get_mut(value).expect("observed activations are never changed"));
        }
    }

    /// Applies an operation. Skipped values give skipped results.
    fn then<U>(&self, operation: impl FnOnce(&T) -> U) -> Activation<U> {
        match self {
            Activation::Known(value) => Activation::new(operation(value)),
            Activation::Skipped => Activation::Skipped,
        }
    }
}

/// A matrix with its role in the layer.
pub struct PlacedMatrix<M> {
    role: Role,
    /// `None` if no pass multiplies with it.
    matrix: Option<M>,
}

impl<M> PlacedMatrix<M> {
    /// A placeholder for a matrix that no pass multiplies with.
    pub fn absent(role: Role) -> PlacedMatrix<M> {
        PlacedMatrix { role, matrix: None }
    }
}

/// Operations that run a part of a layer and keep the input of the matrix at its end.
///
/// Fused operations fall back to their unfused defaults here, so that every matrix input passes through
/// [`ObserveOps::linear`](Forward::linear).
pub struct ObserveOps<O: Ops> {
    inner: O,
    pass: Pass,
    /// The input of the first matrix, if an earlier pass cached it.
    input: Option<Rc<O::Tensor>>,
    observed: Option<Rc<O::Tensor>>,
}

impl<O: Ops> ObserveOps<O> {
    /// Wraps `inner`. Runs whole layers until [`ObserveOps::begin`].
    pub fn new(inner: O) -> ObserveOps<O> {
        ObserveOps { inner, pass: Pass::WHOLE, input: None, observed: None }
    }

    /// Sets the part that the next forward pass of a layer runs. `input` `[rows, cols]`: the cached input of its first matrix, if
    /// any.
    pub fn begin(&mut self, pass: Pass, input: Option<Rc<O::Tensor>>) {
        self.pass = pass;
        self.observed = None;
        self.input = input;
    }

    /// The input of the matrix at the end of the pass. Panics if the pass did not reach it.
    pub fn take_observed(&mut self) -> Rc<O::Tensor> {
        self.observed.take().expect("the pass reached its last matrix")
    }

    /// The wrapped operations.
    pub fn inner(&mut self) -> &mut O {
        &mut self.inner
    }
}

impl<O: Ops> Backend for ObserveOps<O> {
    type Tensor = Activation<O::Tensor>;
    type Matrix = PlacedMatrix<O::Matrix>;
    type Kv = O::Kv;
    type Rows = O::Rows;

    async fn read(&mut self, x: &Self::Tensor) -> Result<Vec<f32>> {
        match x {
            Activation::Known(x) => self.inner.read(x).await,
            Activation::Skipped => panic!("read: this pass did not compute it"),
        }
    }
}

impl<O: Ops> Loading for ObserveOps<O> {
    fn upload_matrix(&mut self, role: Role, weight: Weight) -> Result<Self::Matrix> {
        Ok(PlacedMatrix { role, matrix: Some(self.inner.upload_matrix(role, weight)?) })
    }

    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Tensor> {
        Ok(Activation::new(self.inner.upload(rows, cols, values)?))
    }

    fn new_kv(&mut self, shape: KvShape) -> Result<O::Kv> {
        self.inner.new_kv(shape)
    }
}

impl<O: Ops> Losses for ObserveOps<O> {}

impl<O: Ops> Forward for ObserveOps<O> {
    fn embedding(&mut self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> Self::Tensor {
        Activation::new(self.inner.embedding(table.matrix.as_ref().expect("embedding: uploaded"), tokens, scale))
    }

    fn rms_norm(&mut self, x: &Self::Tensor, weight: &Self::Tensor, eps: f32) -> Self::Tensor {
        let Activation::Known(weight) = weight else { panic!("rms_norm: weights are uploaded") };
        x.then(|x| self.inner.rms_norm(x, weight, eps))
    }

    fn linear(&mut self, x: &Self::Tensor, matrix: &Self::Matrix) -> Self::Tensor {
        let mut x = match x {
            Activation::Known(x) if self.observed.is_none() => Activation::Known(Rc::clone(x)),
            _ => Activation::Skipped,
        };
        if let Some(start) = self.pass.start {
            if matrix.role != start {
                return Activation::Skipped;
            }
            self.pass.start = None;
            if let Some(input) = self.input.take() {
                x = Activation::Known(input);
            }
        }
        if self.pass.stop == Some(matrix.role) {
            if let Activation::Known(x) = x {
                self.observed = Some(x);
            }
            return Activation::Skipped;
        }
        x.then(|x| self.inner.linear(x, matrix.matrix.as_ref().expect("linear: the pass has this matrix")))
    }

    fn place_rows(&mut self, spans: &[RowSpan<'_>]) -> O::Rows {
        self.inner.place_rows(spans)
    }

    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        rope: &Self::Tensor,
        shape: AttentionShape,
        kv: &mut O::Kv,
        rows: &O::Rows,
    ) -> Self::Tensor {
        let Activation::Known(rope) = rope else { panic!("attention: the table is uploaded") };
        qkv.then(|qkv| self.inner.attention(qkv, rope, shape, kv, rows))
    }

    fn glu(&mut self, gate_up: &Self::Tensor, activation: decoder_config::Activation) -> Self::Tensor {
        gate_up.then(|gate_up| self.inner.glu(gate_up, activation))
    }

    fn add_bias(&mut self, x: &mut Self::Tensor, bias: &Self::Tensor) {
        let Activation::Known(bias) = bias else { panic!("add_bias: biases are uploaded") };
        x.change(|x| self.inner.add_bias(x, bias));
    }

    fn norm_heads(
        &mut self,
        qkv: &mut Self::Tensor,
        query: &Self::Tensor,
        key: &Self::Tensor,
        shape: AttentionShape,
        eps: f32,
    ) {
        let (Activation::Known(query), Activation::Known(key)) = (query, key) else {
            panic!("norm_heads: weights are uploaded")
        };
        qkv.change(|qkv| self.inner.norm_heads(qkv, query, key, shape, eps));
    }

    fn soft_cap(&mut self, x: &mut Self::Tensor, cap: f32) {
        x.change(|x| self.inner.soft_cap(x, cap));
    }

    fn add_assign(&mut self, x: &mut Self::Tensor, y: &Self::Tensor) {
        // Skipped parts add nothing.
        if let Activation::Known(y) = y {
            x.change(|x| self.inner.add_assign(x, y));
        }
    }

    fn select_rows(&mut self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor {
        x.then(|x| self.inner.select_rows(x, rows))
    }
}
