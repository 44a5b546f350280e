//! [`GpuOps`]: the operations recorded as kernels of `webgpu-kernels`.
//!
//! Nothing waits until [`Ops::read`] or [`Choose::token`]. Outputs are temporaries of the device's pool: recording the
//! same operations again, as every decode step does, meets the same buffers. An allocation that fails between two reads
//! is reported by the next one.

mod chain;
mod reads;

use model_format::{Role, Weight, decoder_config::Activation};
use webgpu_kernels::{
    Factor, Gpu, KvCache, KvDtype, WeightFormat,
    add::Add,
    argmax::Argmax,
    attention::Attention,
    cross_entropy::CrossEntropy,
    gemm::Cooperative,
    gemv_chain::Links,
    glu::Glu,
    gpu::{Buffer, FEWEST_ROWS, Recorder},
    gram::Gram,
    kl_divergence::KlDivergence,
    norm_heads::NormHeads,
    rms_norm::{AddRmsNorm, RmsNorm},
    rope::Rope,
    sample::Sample,
    select_rows::SelectRows,
    soft_cap::SoftCap,
};

use super::{
    AttentionShape, Choose, KvShape, LayerEnd, NextLayer, Ops, Past, Rows, Rules, Span, TokenWeights, begin_layer,
    finish_layer,
};
use crate::Result;
use reads::{Chains, Reading};

pub use webgpu_kernels::{
    Matrix,
    gemv_chain::ChainChoice,
    gptq::{BLOCK, Problem, Solution, Solver},
    gram::GramSums,
};

/// Tokens that are run before the host knows the first: while one is read and the next recorded, the device has one.
const AHEAD: usize = 2;

/// The operations on a GPU.
pub struct GpuOps {
    gpu: Gpu,
    recorder: Recorder,
    kv_dtype: KvDtype,
    ahead: usize,
    kinds: Vec<(WeightFormat, usize)>,
    /// Of what is chained.
    links: Option<Links>,
    /// How ends of layers are chained, where that is not the device's choice.
    chain: Option<ChainChoice>,
    /// Polls of a waiting workgroup, where that is not the usual number.
    most_polls: Option<u32>,
    chains: Chains,
}

/// A matrix on its way to the device, from its first row on.
struct Filling {
    rows: usize,
    done: usize,
    matrix: Option<Matrix>,
}

impl Filling {
    fn new(rows: usize) -> Filling {
        Filling { rows, done: 0, matrix: None }
    }

    fn add(&mut self, recorder: &Recorder, part: &Weight) -> Result<()> {
        let matrix = match &self.matrix {
            Some(matrix) => matrix,
            None => self.matrix.insert(recorder.with_room(|gpu| Matrix::with_room(gpu, part, self.rows))?),
        };
        matrix.write_rows(recorder.gpu(), self.done, part);
        self.done += part.shape()[0];
        Ok(())
    }

    fn finish(self) -> Matrix {
        assert_eq!(self.done, self.rows, "rows of a matrix");
        self.matrix.expect("a matrix has rows")
    }
}

/// Activations `[rows, cols]` on the device.
pub struct GpuTensor {
    /// Rows, one per token.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    values: Buffer<f32>,
    /// What the values are still to be multiplied by: left by [`Ops::linear_add_rms_norm`] to who reads them.
    factor: Option<Factor>,
}

impl GpuTensor {
    /// The values, of a tensor that is what it is.
    fn settled(&self) -> &Buffer<f32> {
        assert!(self.factor.is_none(), "a fused norm goes to linear, linear_glu or read");
        &self.values
    }
}

impl GpuOps {
    /// Operations on `gpu`, with caches that store `kv_dtype`.
    pub fn new(gpu: Gpu, kv_dtype: KvDtype) -> GpuOps {
        // A software device has no time to give away.
        let ahead = if gpu.caps().is_software { 0 } else { AHEAD };
        GpuOps {
            recorder: Recorder::new(&gpu),
            gpu,
            kv_dtype,
            ahead,
            kinds: Vec::new(),
            links: None,
            chain: None,
            most_polls: None,
            chains: Chains::default(),
        }
    }

    /// Operations that are not run and take no memory, to know beforehand which there will be.
    pub(crate) fn planning(gpu: Gpu, kv_dtype: KvDtype) -> GpuOps {
        GpuOps { recorder: Recorder::planning(&gpu), ..GpuOps::new(gpu, kv_dtype) }
    }

    /// A matrix of a plan.
    pub(crate) fn plan_matrix(&mut self, format: WeightFormat, rows: usize, cols: usize) -> Matrix {
        let matrix = Matrix::hollow(&self.recorder, format, rows, cols);
        self.loaded(matrix)
    }

    /// Plans to choose from `logits`, as [`Choose::choose`] does.
    pub(crate) fn plan_choice(&mut self, logits: &GpuTensor) {
        let id = self.recorder.temporary(1);
        Argmax { rows: 1, cols: logits.cols }.record(&mut self.recorder, logits.settled(), &id);
    }

    /// The same, running so many tokens ahead.
    pub fn with_ahead(self, ahead: usize) -> GpuOps {
        GpuOps { ahead, ..self }
    }

    /// The same, with the ends of layers chained in this way where that is possible, whatever is chosen for the device.
    pub fn with_chain(self, chain: ChainChoice) -> GpuOps {
        GpuOps { chain: Some(chain), ..self }
    }

    /// The same, with a bound on how often a workgroup of a chain polls, to test what happens when one stops waiting. With 0 every
    /// one does.
    pub fn with_most_polls(self, most_polls: u32) -> GpuOps {
        GpuOps { most_polls: Some(most_polls), ..self }
    }

    /// Whether the end of a layer was chained.
    pub fn has_chained(&self) -> bool {
        self.links.is_some()
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What records its dispatches.
    pub(crate) fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// Sums `[rows, cols]` for [`GpuOps::add_gram`], all zero. Errors: out of memory.
    pub fn new_gram(&mut self, rows: usize, cols: usize) -> Result<GramSums> {
        Ok(self.recorder.with_room(|gpu| GramSums::new(gpu, rows, cols))?)
    }

    /// Adds products of the inputs of a matrix, `[tokens, cols]`, whole windows: `sums += X^T W X`; or of what the float model
    /// has, F, and what is compared with it, B, both `[tokens, rows]`: `sums += (F - B)^T W X`. Hands them to the device.
    pub fn add_gram(&mut self, weights: TokenWeights, x: &GpuTensor, sums: &GramSums, drift: Option<[&GpuTensor; 2]>) {
        let tokens = x.rows;
        let weight = self.recorder.temporary(tokens);
        weights.record(&mut self.recorder, tokens, x.settled(), &weight);
        let drift = drift.map(|pair| {
            let fits = pair.iter().all(|side| (side.rows, side.cols) == (tokens, sums.rows));
            assert!(fits && x.cols == sums.cols, "add_gram: shapes");
            pair.map(GpuTensor::settled)
        });
        Gram { tokens }.record(&mut self.recorder, x.settled(), drift, &weight, sums);
        self.recorder.submit();
    }

    /// Whether products with weights in f16 go through the device's matrix units.
    pub fn has_matrix_units(&self) -> bool {
        Cooperative::suits_device(self.gpu.caps())
    }

    /// `scale` times the sums; with `symmetric` those of `X^T W X`. Errors: out of memory.
    pub fn join_gram(&mut self, sums: &GramSums, scale: f32, symmetric: bool) -> Result<Matrix> {
        Ok(sums.join(&mut self.recorder, scale, symmetric)?)
    }

    /// The values of a matrix in f32, row-major.
    pub async fn read_matrix(&mut self, matrix: &Matrix) -> Result<Vec<f32>> {
        Ok(matrix.read(&mut self.recorder).await?)
    }

    /// Notes what kind of matrix was loaded.
    fn loaded(&mut self, matrix: Matrix) -> Matrix {
        let kind = (matrix.format, matrix.cols);
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind);
        }
        matrix
    }

    /// Format and inputs of each kind of matrix that was loaded.
    pub fn kinds(&self) -> &[(WeightFormat, usize)] {
        &self.kinds
    }

    /// Values that a tensor may have at most.
    pub fn most_values(&self) -> usize {
        self.gpu.caps().max_binding.min(self.gpu.caps().max_buffer) as usize / size_of::<f32>()
    }

    /// How caches store keys and values.
    pub fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }

    /// Takes a matrix's quantization problem to the device. Errors: out of memory.
    pub fn new_solver<'a>(&mut self, problem: Problem<'a>) -> Result<Solver<'a>> {
        Ok(Solver::new(&mut self.recorder, problem)?)
    }

    /// [`Solver::shifts`], of a problem with something to make good.
    pub async fn shifts(&mut self, solver: &Solver<'_>, first: usize, rows: usize) -> Result<Vec<f32>> {
        Ok(solver.shifts(&mut self.recorder, first, rows).await?)
    }

    /// Quantizes rows of `weights` `[rows, cols]` on `grid` `[rows, groups, 2]`. Waits until the device has done it.
    pub async fn solve_rows(&mut self, solver: &Solver<'_>, weights: &[f32], grid: &[f32]) -> Result<Solution> {
        Ok(solver.solve(&mut self.recorder, weights, grid).await?)
    }

    fn temporary(&mut self, rows: usize, cols: usize) -> GpuTensor {
        GpuTensor { rows, cols, values: self.recorder.temporary(rows * cols), factor: None }
    }
}

impl Ops for GpuOps {
    type Tensor = GpuTensor;
    type Matrix = Matrix;
    type Kv = KvCache;

    fn upload_matrix(&mut self, _role: Role, weight: Weight) -> Result<Matrix> {
        let matrix = self.recorder.with_room(|gpu| Matrix::upload(gpu, &weight))?;
        Ok(self.loaded(matrix))
    }

    fn upload_parts(
        &mut self,
        _role: Role,
        rows: usize,
        parts: &mut dyn Iterator<Item = Result<Weight>>,
    ) -> Result<Matrix> {
        let mut filling = Filling::new(rows);
        for part in parts {
            filling.add(&self.recorder, &part?)?;
        }
        Ok(self.loaded(filling.finish()))
    }

    async fn upload_rows(&mut self, _role: Role, source: &mut impl Rows) -> Result<Matrix> {
        let ([rows, cols], step) = (source.shape(), source.rows_at_once());
        if let Some(format) = source.stored_format() {
            let matrix = self.recorder.with_room(|gpu| Matrix::of_format(gpu, format, rows, cols))?;
            for first in (0..rows).step_by(step) {
                let [codes, scales] = source.stored(first..rows.min(first + step)).await?;
                matrix.write_stored(&self.gpu, first, &codes, &scales);
            }
            return Ok(self.loaded(matrix));
        }
        let mut filling = Filling::new(rows);
        for first in (0..rows).step_by(step) {
            filling.add(&self.recorder, &source.read(first..rows.min(first + step)).await?)?;
        }
        Ok(self.loaded(filling.finish()))
    }

    fn upload(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<GpuTensor> {
        assert_eq!(values.len(), rows * cols, "upload: values of {rows} x {cols}");
        let values = match self.recorder.hollow(values.len()) {
            Some(hollow) => hollow,
            None => self.recorder.with_room(|gpu| gpu.upload(values))?,
        };
        Ok(GpuTensor { rows, cols, values, factor: None })
    }

    fn new_kv(&mut self, shape: KvShape) -> Result<KvCache> {
        let KvShape { kv_heads, capacity, head_dim } = shape;
        if self.recorder.hollow::<u32>(0).is_some() {
            return Ok(KvCache::hollow(&self.recorder, kv_heads, capacity, head_dim, self.kv_dtype));
        }
        Ok(self.recorder.with_room(|gpu| KvCache::new(gpu, kv_heads, capacity, head_dim, self.kv_dtype))?)
    }

    async fn read(&mut self, x: &GpuTensor) -> Result<Vec<f32>> {
        let mut values = self.read_now(&x.values).await?;
        if let Some(factor) = &x.factor {
            let factor = factor.of(&self.read_now(&factor.squares).await?, x.cols);
            values.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(values)
    }

    fn rows_at_once(&self, work: u64) -> usize {
        // More than fits a browser's `usize` is as good as no bound.
        usize::try_from(self.gpu.work_of_part() / work.max(1)).unwrap_or(usize::MAX)
    }

    fn fewest_rows(&self) -> usize {
        FEWEST_ROWS
    }

    async fn cross_entropy(&mut self, logits: &GpuTensor, targets: &[u32]) -> Result<Vec<f32>> {
        assert_eq!(logits.rows, targets.len(), "cross_entropy: one target per row");
        let beyond = targets.iter().find(|&&target| target as usize >= logits.cols);
        assert!(beyond.is_none(), "cross_entropy: target {beyond:?} of {}", logits.cols);
        let targets = self.recorder.upload(targets);
        let losses = self.recorder.temporary(logits.rows);
        let entropy = CrossEntropy { rows: logits.rows, cols: logits.cols };
        entropy.record(&mut self.recorder, logits.settled(), &targets, &losses);
        self.read_now(&losses).await
    }

    async fn kl_divergence(&mut self, logits: &GpuTensor, others: &GpuTensor, rows: usize) -> Result<Vec<f32>> {
        assert_eq!((logits.rows, logits.cols), (others.rows, others.cols), "kl_divergence: shapes");
        assert_eq!(logits.rows, rows, "kl_divergence: rows");
        let divergences = self.recorder.temporary(rows);
        let divergence = KlDivergence { rows, cols: logits.cols };
        divergence.record(&mut self.recorder, logits.settled(), others.settled(), &divergences);
        self.read_now(&divergences).await
    }

    fn embedding(&mut self, table: &Matrix, tokens: &[u32], scale: f32) -> GpuTensor {
        let beyond = tokens.iter().find(|&&token| token as usize >= table.rows);
        assert!(beyond.is_none(), "embedding: token {beyond:?} of {}", table.rows);
        let ids = self.recorder.upload(tokens);
        let y = self.temporary(tokens.len(), table.cols);
        table.embedding(&mut self.recorder, &ids, tokens.len(), scale, &y.values);
        y
    }

    fn rms_norm(&mut self, x: &GpuTensor, weight: &GpuTensor, eps: f32) -> GpuTensor {
        assert_eq!(x.cols, weight.values.len(), "rms_norm: one weight per column");
        let y = self.temporary(x.rows, x.cols);
        let norm = RmsNorm { rows: x.rows, cols: x.cols, eps };
        norm.record(&mut self.recorder, x.settled(), &weight.values, &y.values);
        y
    }

    fn linear(&mut self, x: &GpuTensor, matrix: &Matrix) -> GpuTensor {
        assert_eq!(x.cols, matrix.cols, "linear: inputs");
        let y = self.temporary(x.rows, matrix.rows);
        match &x.factor {
            Some(factor) => matrix.linear_normed(&mut self.recorder, &x.values, factor, &y.values),
            None => matrix.linear(&mut self.recorder, &x.values, x.rows, &y.values),
        }
        y
    }

    fn attention(
        &mut self,
        qkv: &GpuTensor,
        rope: &GpuTensor,
        shape: AttentionShape,
        spans: &mut [Span<'_, KvCache>],
    ) -> GpuTensor {
        let AttentionShape { heads, kv_heads, head_dim, rotary_dim, .. } = shape;
        assert_eq!(qkv.cols, (heads + 2 * kv_heads) * head_dim, "attention: columns of q | k | v");
        assert_eq!(
            spans.iter().map(|span| span.rows).sum::<usize>(),
            qkv.rows,
            "attention: spans must cover every row"
        );
        let q = self.temporary(qkv.rows, heads * head_dim);
        let y = self.temporary(qkv.rows, heads * head_dim);
        let mut first_row = 0;
        for Span { rows, past_len, kv } in spans {
            let (rows, past_len) = (*rows, *past_len);
            assert_eq!((kv.kv_heads, kv.head_dim), (kv_heads, head_dim), "attention: the cache's shape");
            let turn = Rope { first_row, rows, heads, rotary_dim, past_len };
            turn.record(&mut self.recorder, qkv.settled(), &rope.values, &q.values, kv);
            let attention = Attention { shape, first_row, rows, past_len };
            attention.record(&mut self.recorder, &q.values, kv, &y.values);
            first_row += rows;
        }
        y
    }

    fn linear_attention(
        &mut self,
        x: &GpuTensor,
        matrix: &Matrix,
        rope: &GpuTensor,
        shape: AttentionShape,
        spans: &mut [Span<'_, KvCache>],
    ) -> GpuTensor {
        let AttentionShape { heads, head_dim, rotary_dim, .. } = shape;
        if let (Some(factor), [span]) = (&x.factor, &mut *spans)
            && matrix.turns(&self.gpu, head_dim, rotary_dim, span.kv.dtype)
        {
            let (q, y) = (self.temporary(1, heads * head_dim), self.temporary(1, heads * head_dim));
            let (past_len, kv) = (span.past_len, &*span.kv);
            matrix.linear_normed_turned(&mut self.recorder, &x.values, factor, &rope.values, past_len, &q.values, kv);
            let attention = Attention { shape, first_row: 0, rows: 1, past_len };
            attention.record(&mut self.recorder, &q.values, kv, &y.values);
            return y;
        }
        let qkv = self.linear(x, matrix);
        self.attention(&qkv, rope, shape, spans)
    }

    fn norm_heads(&mut self, qkv: &mut GpuTensor, query: &GpuTensor, key: &GpuTensor, shape: AttentionShape, eps: f32) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        assert_eq!(qkv.cols, (heads + 2 * kv_heads) * head_dim, "norm_heads: columns of q | k | v");
        assert_eq!((query.cols, key.cols), (head_dim, head_dim), "norm_heads: one weight per element");
        let norm = NormHeads { rows: qkv.rows, heads, kv_heads, head_dim, eps };
        norm.record(&mut self.recorder, qkv.settled(), query.settled(), key.settled());
    }

    fn glu(&mut self, gate_up: &GpuTensor, activation: Activation) -> GpuTensor {
        let (rows, inner) = (gate_up.rows, gate_up.cols / 2);
        let y = self.temporary(rows, inner);
        Glu { rows, inner, activation }.record(&mut self.recorder, gate_up.settled(), &y.values);
        y
    }

    fn add_assign(&mut self, x: &mut GpuTensor, y: &GpuTensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "add_assign: shapes");
        Add { rows: 1, cols: x.rows * x.cols }.record(&mut self.recorder, x.settled(), y.settled());
    }

    fn add_bias(&mut self, x: &mut GpuTensor, bias: &GpuTensor) {
        assert_eq!((bias.rows, bias.cols), (1, x.cols), "add_bias: one value per column");
        Add { rows: x.rows, cols: x.cols }.record(&mut self.recorder, x.settled(), bias.settled());
    }

    fn soft_cap(&mut self, x: &mut GpuTensor, cap: f32) {
        SoftCap { len: x.rows * x.cols, cap }.record(&mut self.recorder, x.settled());
    }

    fn select_rows(&mut self, x: &GpuTensor, rows: &[usize]) -> GpuTensor {
        assert!(rows.iter().all(|&row| row < x.rows), "select_rows: {rows:?} of {}", x.rows);
        let ids: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).expect("a row number fits u32")).collect();
        let ids = self.recorder.upload(&ids);
        let y = self.temporary(rows.len(), x.cols);
        let select = SelectRows { count: rows.len(), cols: x.cols };
        select.record(&mut self.recorder, x.settled(), &ids, &y.values);
        y
    }

    fn add_rms_norm(&mut self, x: &mut GpuTensor, y: &GpuTensor, weight: &GpuTensor, eps: f32) -> GpuTensor {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "add_rms_norm: shapes");
        assert_eq!(x.cols, weight.values.len(), "add_rms_norm: one weight per column");
        let normed = self.temporary(x.rows, x.cols);
        let norm = AddRmsNorm { rows: x.rows, cols: x.cols, eps };
        norm.record(&mut self.recorder, x.settled(), y.settled(), &weight.values, &normed.values);
        normed
    }

    fn linear_add_rms_norm(
        &mut self,
        x: &mut GpuTensor,
        y: &GpuTensor,
        matrix: &Matrix,
        weight: &GpuTensor,
        eps: f32,
    ) -> GpuTensor {
        if x.rows > 1 || !matrix.fuses(&self.gpu) {
            let y = self.linear(y, matrix);
            return self.add_rms_norm(x, &y, weight, eps);
        }
        assert_eq!((y.rows, y.cols), (1, matrix.cols), "linear_add_rms_norm: inputs");
        assert_eq!((x.cols, weight.values.len()), (matrix.rows, matrix.rows), "linear_add_rms_norm: outputs");
        let mut normed = self.temporary(1, x.cols);
        let (y, x) = (y.settled(), x.settled());
        let factor = matrix.linear_add(&mut self.recorder, y, &weight.values, x, &normed.values, eps);
        normed.factor = Some(factor);
        normed
    }

    fn linear_glu(&mut self, x: &GpuTensor, gate_up: &Matrix, activation: Activation) -> GpuTensor {
        match &x.factor {
            Some(factor) if activation == Activation::Silu && gate_up.fuses(&self.gpu) => {
                assert_eq!(x.cols, gate_up.cols, "linear_glu: inputs");
                let y = self.temporary(1, gate_up.rows / 2);
                gate_up.linear_normed_swiglu(&mut self.recorder, &x.values, factor, &y.values);
                y
            }
            _ => {
                let gate_up = self.linear(x, gate_up);
                self.glu(&gate_up, activation)
            }
        }
    }

    fn begin_layer(
        &mut self,
        x: &GpuTensor,
        norm: &GpuTensor,
        eps: f32,
        layer: NextLayer<'_, '_, GpuOps>,
    ) -> GpuTensor {
        match self.chained_start(x, norm, eps, &layer) {
            Some(tensor) => tensor,
            None => begin_layer(self, x, norm, eps, layer),
        }
    }

    fn finish_layer(
        &mut self,
        x: &mut GpuTensor,
        y: &GpuTensor,
        end: LayerEnd<'_, GpuOps>,
        next: Option<NextLayer<'_, '_, GpuOps>>,
    ) -> GpuTensor {
        match self.chained(x, y, &end, next.as_ref()) {
            Some(tensor) => tensor,
            None => finish_layer(self, x, y, end, next),
        }
    }
}

/// A token that was chosen on the device.
pub struct GpuToken {
    id: Buffer<u32>,
    reading: Reading<u32>,
}

impl Choose for GpuOps {
    type Token = GpuToken;
    type Draw = Sample;

    fn ahead(&self) -> usize {
        self.ahead
    }

    fn choose(&mut self, logits: &GpuTensor) -> Result<GpuToken> {
        assert_eq!(logits.rows, 1, "choose: from one row");
        let id = self.token_word();
        Argmax { rows: 1, cols: logits.cols }.record(&mut self.recorder, logits.settled(), &id);
        Ok(GpuToken { reading: self.begin_read(&id)?, id })
    }

    fn new_draw(&mut self, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Option<Sample>> {
        // Where nothing is run ahead there is nothing to gain.
        let is_off = Sample::NAMES.iter().any(|name| self.gpu.is_off(name));
        if self.ahead == 0 || cols > Sample::MOST_COLS || is_off {
            return Ok(None);
        }
        Ok(Some(self.recorder.with_room(|gpu| Sample::new(gpu, rules, cols, history))?))
    }

    fn draw(&mut self, logits: &GpuTensor, with: &Sample, random: f64) -> Result<GpuToken> {
        assert_eq!(logits.rows, 1, "draw: from one row");
        let id = self.token_word();
        with.record(&mut self.recorder, logits.settled(), random, &id);
        Ok(GpuToken { reading: self.begin_read(&id)?, id })
    }

    async fn choose_rows(&mut self, logits: &GpuTensor, rows: usize) -> Result<Vec<u32>> {
        assert_eq!(logits.rows, rows, "choose_rows: rows");
        let ids = self.recorder.temporary(rows);
        Argmax { rows, cols: logits.cols }.record(&mut self.recorder, logits.settled(), &ids);
        self.read_now(&ids).await
    }

    fn embedding_of(&mut self, table: &Matrix, token: &GpuToken, scale: f32) -> GpuTensor {
        let y = self.temporary(1, table.cols);
        table.embedding(&mut self.recorder, &token.id, 1, scale, &y.values);
        y
    }

    async fn token(&mut self, token: GpuToken) -> Result<u32> {
        Ok(self.finish_read(token.reading).await?[0])
    }

    fn take_notice(&mut self) -> Option<String> {
        self.chains.take_notice()
    }
}
