//! [`Speeds`]: how fast this machine does the kinds of work there are, found out with small pieces of it.

use std::time::{Duration, Instant};

use model_format::{DecoderConfig, Role, Weight};
use ndarray::Array2;

use crate::{Calibrate, Hessian, Result, Settings, TokenWeight, cholesky::square, work::solve_cost};

/// How large the pieces are.
struct Pieces {
    tokens: usize,
    /// The most inputs of a matrix that is solved for a trial, and its least rows.
    solved_cols: usize,
    solved_rows: usize,
}

impl Pieces {
    const ON_HOST: Pieces = Pieces { tokens: 512, solved_cols: 1024, solved_rows: 64 };
    /// A device has more to do at a time before it is busy.
    const ON_DEVICE: Pieces = Pieces { tokens: 2048, solved_cols: 3072, solved_rows: 2048 };
}

/// Multiplications per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speeds {
    /// Of activations with a matrix.
    pub(crate) forward: f64,
    /// Of activations with themselves.
    pub(crate) gram: f64,
    /// In solving a matrix, as [`solve_cost`] counts them.
    pub(crate) solve: f64,
}

impl Speeds {
    /// Takes about a second.
    pub(crate) async fn measure<O: Calibrate>(
        ops: &mut O,
        config: &DecoderConfig,
        settings: &Settings,
    ) -> Result<Speeds> {
        let Pieces { tokens, solved_cols, solved_rows } = if O::ON_HOST { Pieces::ON_HOST } else { Pieces::ON_DEVICE };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let data = |len: usize| (0..len).map(|i| ((i * 7919) % 251) as f32 / 251.0 - 0.5).collect::<Vec<_>>();
        let matrix = Weight::F32 { shape: vec![hidden, inner], data: data(hidden * inner) };
        let matrix = ops.upload_matrix(Role::Down(0), matrix)?;
        let x = ops.upload(tokens, inner, &data(tokens * inner))?;
        let h = ops.upload(tokens, hidden, &data(tokens * hidden))?;
        let (mut forward, mut gram) = (0.0, 0.0);
        // The first time is for compiling, and for memory that is new.
        for _ in 0..2 {
            let begun = Instant::now();
            let y = ops.linear(&x, &matrix);
            // A row tells that all are there.
            let row = ops.select_rows(&y, &[0]);
            ops.read(&row).await?;
            forward = (tokens * hidden * inner) as f64 / begun.elapsed().as_secs_f64();

            let mut times = [0.0; 2];
            for (time, pieces) in times.iter_mut().zip([1, 5]) {
                let mut sums = ops.new_sums(hidden, TokenWeight::PLAIN.in_windows(tokens), false)?;
                let begun = Instant::now();
                for _ in 0..pieces {
                    ops.add(&mut sums, &h, None).await?;
                }
                ops.finish(sums).await?;
                *time = begun.elapsed().as_secs_f64();
            }
            // What it takes to read the sums is not a piece's.
            gram = 4.0 * (tokens * hidden * hidden) as f64 / 2.0 / (times[1] - times[0]).max(times[1] / 10.0);
        }
        let solve = measure_solve(ops, [solved_rows, hidden.min(solved_cols)], settings).await?;
        Ok(Speeds { forward, gram, solve })
    }
}

async fn measure_solve<O: Calibrate>(ops: &mut O, [rows, cols]: [usize; 2], settings: &Settings) -> Result<f64> {
    // Enough rows for every thread.
    let rows = (crate::gptq::ROWS * rayon::current_num_threads()).max(rows);
    let weights = Array2::from_shape_fn((rows, cols), |(n, k)| ((n * 7919 + k * 104_729) % 1009) as f32 / 1009.0 - 0.5);
    let products = square(cols, |i, j| if i == j { 2.0 } else { 1.0 / (1.0 + i.abs_diff(j) as f64) });
    let drift = (settings.matrix.gptaq_alpha != 0.0).then(|| square(cols, |i, j| products[(i, j)] * 0.01));
    let hessian = Hessian { products, drift };
    let resident = ops.place(&hessian)?;
    let mut speed = 0.0;
    for _ in 0..2 {
        let (begun, mut factoring) = (Instant::now(), Duration::ZERO);
        ops.solve(weights.view(), &hessian, &resident, &settings.matrix, &mut factoring).await?;
        speed = solve_cost(rows, cols) / begun.elapsed().as_secs_f64();
    }
    Ok(speed)
}
