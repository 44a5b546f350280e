//! [`Speeds`]: how fast this machine does the kinds of work there are, found out with small pieces of it.

use std::time::{Duration, Instant};

use infer_core::ops::{Ops, Span};
use ndarray::Array2;

use crate::{
    Calibrate, Hessian, Result, Settings,
    cholesky::square,
    pipeline::{WHOLE_LAYER, Walk, matrix_roles},
};

/// How large the pieces are.
struct Pieces {
    /// How often a batch is run before it is timed: for at least so long. A device that had nothing to do is slow at first.
    warm_up: Duration,
    /// The most inputs of a matrix that is solved for a trial, and its least rows.
    solved_cols: usize,
    solved_rows: usize,
}

impl Pieces {
    const ON_HOST: Pieces = Pieces { warm_up: Duration::ZERO, solved_cols: 1024, solved_rows: 64 };
    /// A device has more to do at a time before it is busy.
    const ON_DEVICE: Pieces = Pieces { warm_up: Duration::from_millis(500), solved_cols: 3072, solved_rows: 1024 };
}

/// How many times the rows the second matrix has that is solved for a trial.
const MORE_ROWS: usize = 4;

/// What there is to do takes so long.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Speeds {
    /// Seconds that a token takes through a layer.
    pub(crate) forward: f64,
    /// Seconds until a layer's weights are where they are multiplied with.
    pub(crate) weights: f64,
    /// Multiplications per second of activations with themselves.
    pub(crate) gram: f64,
    /// The same in factors of Hessians: of a third of the cube of their inputs.
    pub(crate) factors: f64,
    /// The same in solving a matrix, of half of its rows times the square of its inputs.
    pub(crate) solve: f64,
    /// Seconds that solving takes however few rows there are, for each number of a Hessian.
    pub(crate) hessian: f64,
}

impl Speeds {
    /// Takes a few seconds at the most.
    pub(crate) async fn measure<O: Calibrate>(walk: &mut Walk<'_, O>) -> Result<Speeds> {
        let pieces = if O::ON_HOST { Pieces::ON_HOST } else { Pieces::ON_DEVICE };
        let (forward, weights) = forward(walk, &pieces).await?;
        let gram = gram(walk).await?;
        // Enough rows for every thread.
        let rows = (crate::gptq::ROWS * rayon::current_num_threads()).max(pieces.solved_rows);
        let shape = [rows, walk.config.hidden_size.min(pieces.solved_cols)];
        let [rows, cols] = shape.map(|len| len as f64);
        let (factoring, few) = solve(walk.ops.inner(), shape, walk.settings).await?;
        let (_, many) = solve(walk.ops.inner(), [MORE_ROWS * shape[0], shape[1]], walk.settings).await?;
        // What a matrix takes grows with its rows, but not from nothing.
        let each_row = (many - few) / ((MORE_ROWS - 1) as f64 * rows);
        let each_row = if each_row > 0.0 { each_row } else { many / (MORE_ROWS as f64 * rows) };
        let fixed = (few - rows * each_row).max(0.0);
        Ok(Speeds {
            forward,
            weights,
            gram,
            factors: cols * cols * cols / 3.0 / factoring,
            solve: cols * cols / 2.0 / each_row,
            hessian: fixed / (cols * cols),
        })
    }
}

/// Numbers for a trial.
fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 251) as f32 / 251.0 - 0.5).collect()
}

/// Seconds that a token takes through the first layer of the float model, a batch at a time, and that its weights take.
async fn forward<O: Calibrate>(walk: &mut Walk<'_, O>, pieces: &Pieces) -> Result<(f64, f64)> {
    let begun = Instant::now();
    walk.enter(0)?;
    let matrices = matrix_roles(0).map(|role| Ok((role, walk.weight(role)?)));
    let matrices = matrices.into_iter().collect::<Result<_>>()?;
    let layer = walk.upload_layer(matrices)?;
    let weights = begun.elapsed().as_secs_f64();

    let windows = walk.kv.len();
    let (rows, cols) = (windows * walk.seq_len, walk.config.hidden_size);
    let hidden = walk.ops.upload(rows, cols, &noise(rows * cols))?;
    let run = async |walk: &mut Walk<'_, O>| -> Result<f64> {
        let begun = Instant::now();
        let mut x = walk.ops.select_rows(&hidden, &(0..rows).collect::<Vec<_>>());
        walk.ops.begin(WHOLE_LAYER, None);
        let mut spans: Vec<_> = walk.kv.iter_mut().map(|kv| Span { rows: walk.seq_len, past_len: 0, kv }).collect();
        let rope = walk.rope.table(walk.rope.is_long(walk.seq_len));
        let delta = layer.forward(&mut walk.ops, &mut x, rope, &mut spans);
        walk.ops.add_assign(&mut x, &delta);
        let row = walk.ops.select_rows(&x, &[0]);
        walk.ops.read(&row).await?;
        Ok(begun.elapsed().as_secs_f64())
    };
    // The first time is for compiling, and for memory that is new.
    let begun = Instant::now();
    run(walk).await?;
    while begun.elapsed() < pieces.warm_up {
        run(walk).await?;
    }
    let least = run(walk).await?.min(run(walk).await?);
    Ok((least / rows as f64, weights))
}

/// Multiplications per second of a batch of the widest inputs with themselves.
async fn gram<O: Calibrate>(walk: &mut Walk<'_, O>) -> Result<f64> {
    let (rows, cols) = (walk.kv.len() * walk.seq_len, walk.config.intermediate_size);
    let weights = walk.token_weights();
    let ops = walk.ops.inner();
    let x = ops.upload(rows, cols, &noise(rows * cols))?;
    let mark = ops.upload(1, 1, &[0.0])?;
    let mut sums = ops.new_sums(cols, weights, false)?;
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        let begun = Instant::now();
        ops.add(&mut sums, &x, None).await?;
        ops.read(&mark).await?;
        seconds = seconds.min(begun.elapsed().as_secs_f64());
    }
    Ok((rows * cols * cols) as f64 / 2.0 / seconds)
}

/// Seconds of a factor, and of codes and scales.
async fn solve<O: Calibrate>(ops: &mut O, [rows, cols]: [usize; 2], settings: &Settings) -> Result<(f64, f64)> {
    let weights = Array2::from_shape_fn((rows, cols), |(n, k)| ((n * 7919 + k * 104_729) % 1009) as f32 / 1009.0 - 0.5);
    let products = square(cols, |i, j| if i == j { 2.0 } else { 1.0 / (1.0 + i.abs_diff(j) as f64) });
    let drift = (settings.matrix.gptaq_alpha != 0.0).then(|| square(cols, |i, j| products[(i, j)] * 0.01));
    let hessian = Hessian { products, drift, stream_drift: None };
    let resident = ops.place(&hessian)?;
    let (mut least_factoring, mut least) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        let (begun, mut factoring) = (Instant::now(), Duration::ZERO);
        ops.solve(weights.view(), &hessian, &resident, &settings.matrix, &mut factoring).await?;
        least_factoring = least_factoring.min(factoring.as_secs_f64());
        least = least.min((begun.elapsed() - factoring).as_secs_f64());
    }
    Ok((least_factoring, least))
}
