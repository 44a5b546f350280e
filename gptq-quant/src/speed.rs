//! [`Speeds`]: how fast this machine does the kinds of work there are, found out with small pieces of it, of the model's own
//! sizes.

use std::time::{Duration, Instant};

use infer_core::ops::{Backend, Forward, Loading, Span};
use ndarray::Array2;

use crate::{
    Calibrate, Hessian, Result, Settings,
    cholesky::{filled, square},
    pipeline::{WHOLE_LAYER, Walk, matrix_roles},
    streams::input_cols,
};

/// How large the pieces are.
struct Pieces {
    /// How often a batch is run before it is timed: for at least so long. A device that had nothing to do is slow at first.
    warm_up: Duration,
    /// The least rows of a matrix that is solved for a trial.
    solved_rows: usize,
}

impl Pieces {
    const ON_HOST: Pieces = Pieces { warm_up: Duration::ZERO, solved_rows: 64 };
    /// A device has more to do at a time before it is busy.
    const ON_DEVICE: Pieces = Pieces { warm_up: Duration::from_millis(500), solved_rows: 2048 };
    const ON_SOFTWARE: Pieces = Pieces { warm_up: Duration::ZERO, solved_rows: 256 };
}

/// A piece that takes longer is large enough, and is not done again.
const LONG: Duration = Duration::from_millis(150);

/// How many times the rows the second matrix has that is solved for a trial.
const MORE_ROWS: usize = 4;

/// The most inputs of a matrix that is solved for a trial. What one with more takes follows.
const MOST_COLS: usize = 4096;

/// What there is to do takes so many seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Speeds {
    /// A token through a layer.
    pub(crate) forward: f64,
    /// The same where eight bits are enough.
    pub(crate) rounded_forward: f64,
    /// Until a layer's weights are where they are multiplied with.
    pub(crate) weights: f64,
    /// Adding up the inputs of a layer's matrices, of each in turn, for a token.
    pub(crate) sums: [f64; 4],
    /// Solving these matrices.
    pub(crate) matrices: [Solving; 4],
}

/// What solving a matrix takes, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Solving {
    /// However few rows there are.
    pub(crate) whole: f64,
    pub(crate) each_row: f64,
}

impl Solving {
    pub(crate) fn seconds(self, rows: f64) -> f64 {
        self.whole + rows * self.each_row
    }

    /// From what a factor took and what codes and scales did, of two matrices with so many rows; of one, where the second was
    /// not tried.
    fn of(factoring: f64, few: (usize, f64), many: Option<(usize, f64)>) -> Solving {
        let all = |(rows, seconds): (usize, f64)| Solving { whole: factoring, each_row: seconds / rows as f64 };
        let Some(many) = many else { return all(few) };
        // What a matrix takes grows with its rows, but not from nothing.
        let each_row = (many.1 - few.1) / (many.0 - few.0) as f64;
        let whole = few.1 - few.0 as f64 * each_row;
        // Somebody else had the machine for a moment.
        if each_row <= 0.0 || whole < 0.0 { all(many) } else { Solving { whole: factoring + whole, each_row } }
    }

    /// The same with as many inputs: a factor takes as their cube, all else as their square.
    fn with_inputs(factoring: f64, of: Solving, ratio: f64) -> Solving {
        let square = ratio * ratio;
        let whole = factoring * square * ratio + (of.whole - factoring) * square;
        Solving { whole, each_row: of.each_row * square }
    }
}

impl Speeds {
    /// Takes a few seconds at the most. `streams`: the models that the text is run through; `adds_late`: the drift of down's
    /// inputs is added up while the host factors.
    pub(crate) async fn measure<O: Calibrate>(
        walk: &mut Walk<'_, O>,
        streams: usize,
        adds_late: bool,
    ) -> Result<Speeds> {
        let beside = walk.ops.inner().works_beside_host();
        let pieces = match (O::ON_HOST, beside) {
            (true, _) => Pieces::ON_HOST,
            (false, true) => Pieces::ON_DEVICE,
            (false, false) => Pieces::ON_SOFTWARE,
        };
        let (forward, weights) = forward(walk, &pieces).await?;
        let rounded_forward = match walk.ops.inner().rounded() {
            None => forward,
            Some(rounded) => {
                let exact = std::mem::replace(walk.ops.inner(), rounded);
                let (forward, _) = self::forward(walk, &pieces).await?;
                *walk.ops.inner() = exact;
                forward
            }
        };
        let mut speeds = Speeds { forward, rounded_forward, weights, ..Speeds::default() };
        let with_drift = streams > 1;
        let mut known: Vec<(usize, bool, f64, Solving)> = Vec::new();
        for (place, role) in matrix_roles(0).into_iter().enumerate() {
            let cols = input_cols(walk.config, role);
            let compares = with_drift && walk.could_compare_streams(role);
            let adds_late = adds_late && beside && place + 1 == speeds.sums.len();
            let (sums, solving) = match known.iter().find(|known| (known.0, known.1) == (cols, compares) && !adds_late)
            {
                Some(&(_, _, sums, solving)) => (sums, solving),
                None => {
                    let sums = sums(walk, cols, with_drift && !adds_late, compares).await?;
                    (sums, solve(walk.ops.inner(), cols, compares, walk.settings, &pieces).await?)
                }
            };
            known.push((cols, compares, sums, solving));
            (speeds.sums[place], speeds.matrices[place]) = (sums, solving);
        }
        Ok(speeds)
    }
}

/// Numbers for a trial.
fn noise(len: usize) -> Vec<f32> {
    let period: Vec<f32> = (0..251).map(|i| ((i * 7919) % 251) as f32 / 251.0 - 0.5).collect();
    let mut noise = period.repeat(len.div_ceil(period.len()));
    noise.truncate(len);
    noise
}

/// The seconds of a window that a trial of it and of a whole batch tell: `run` takes windows and says how long they took.
async fn of_window(batch: usize, mut run: impl AsyncFnMut(usize) -> Result<Duration>) -> Result<f64> {
    let one = run(1).await?;
    if one > LONG {
        return Ok(one.as_secs_f64());
    }
    // The first of a size is also for memory that is new.
    let all = run(batch).await?;
    let least = if all > 4 * LONG { all } else { all.min(run(batch).await?) };
    Ok(least.as_secs_f64() / batch as f64)
}

/// Seconds that a token takes through the first layer of the float model, and that its weights take.
async fn forward<O: Calibrate>(walk: &mut Walk<'_, O>, pieces: &Pieces) -> Result<(f64, f64)> {
    let begun = Instant::now();
    walk.enter(0)?;
    let matrices = matrix_roles(0).map(|role| Ok((role, walk.weight(role)?)));
    let matrices = matrices.into_iter().collect::<Result<_>>()?;
    let layer = walk.upload_layer(matrices)?;
    let weights = begun.elapsed().as_secs_f64();

    let (batch, cols, seq_len) = (walk.kv.len(), walk.config.hidden_size, walk.seq_len);
    let hidden = walk.ops.upload(batch * seq_len, cols, &noise(batch * seq_len * cols))?;
    let mut run = async |windows: usize| -> Result<Duration> {
        let begun = Instant::now();
        let mut x = walk.ops.select_rows(&hidden, &(0..windows * seq_len).collect::<Vec<_>>());
        walk.ops.begin(WHOLE_LAYER, None);
        let kv = walk.kv.iter_mut().take(windows);
        let mut spans: Vec<_> = kv.map(|kv| Span { rows: seq_len, past_len: 0, kv }).collect();
        let rope = walk.rope.table(walk.rope.is_long(seq_len));
        let delta = layer.forward(&mut walk.ops, &mut x, rope, &mut spans);
        walk.ops.add_assign(&mut x, &delta);
        let row = walk.ops.select_rows(&x, &[0]);
        walk.ops.read(&row).await?;
        Ok(begun.elapsed())
    };
    // The first time is for compiling, and for memory that is new.
    let first = run(1).await?;
    if first < LONG {
        run(batch).await?;
    }
    let begun = Instant::now();
    while begun.elapsed() < pieces.warm_up {
        run(batch).await?;
    }
    Ok((of_window(batch, run).await? / seq_len as f64, weights))
}

/// Seconds that a token's inputs `[_, cols]` take to be added up, with all that is added with them.
async fn sums<O: Calibrate>(walk: &mut Walk<'_, O>, cols: usize, with_drift: bool, compares: bool) -> Result<f64> {
    let (batch, seq_len, hidden_size) = (walk.kv.len(), walk.seq_len, walk.config.hidden_size);
    let weights = walk.token_weights();
    let ops = walk.ops.inner();
    let mark = ops.upload(1, 1, &[0.0])?;
    let mut sums = ops.new_sums(cols, weights, with_drift)?;
    if compares {
        ops.expect_streams(&mut sums, hidden_size)?;
    }
    let mut run = async |windows: usize| -> Result<Duration> {
        let rows = windows * seq_len;
        let x = ops.upload(rows, cols, &noise(rows * cols))?;
        let stream = if compares { Some(ops.upload(rows, hidden_size, &noise(rows * hidden_size))?) } else { None };
        ops.read(&mark).await?;
        let begun = Instant::now();
        ops.add(&mut sums, &x, with_drift.then_some(&x)).await?;
        if let Some(stream) = &stream {
            ops.add_streams(&mut sums, &x, [stream, stream]).await?;
        }
        ops.read(&mark).await?;
        Ok(begun.elapsed())
    };
    run(1).await?;
    Ok(of_window(batch, run).await? / seq_len as f64)
}

/// What solving a matrix with `cols` inputs takes; with `compares` one that makes good how the residual stream has drifted.
async fn solve<O: Calibrate>(
    ops: &mut O,
    cols: usize,
    compares: bool,
    settings: &Settings,
    pieces: &Pieces,
) -> Result<Solving> {
    let inputs = cols.min(MOST_COLS);
    let products = square(inputs, |i, j| if i == j { 2.0 } else { 1.0 / (1.0 + i.abs_diff(j) as f64) });
    let drift = (settings.matrix.gptaq_alpha != 0.0).then(|| square(inputs, |i, j| products[(i, j)] * 0.01));
    let mut hessian = Hessian { products, drift, stream_drift: None };
    // Enough rows for every thread.
    let few = (crate::gptq::ROWS * rayon::current_num_threads()).max(pieces.solved_rows);
    let mut run = async |rows: usize| -> Result<(Duration, Duration)> {
        let weights =
            Array2::from_shape_fn((rows, inputs), |(n, k)| ((n * 7919 + k * 104_729) % 1009) as f32 / 1009.0 - 0.5);
        hessian.stream_drift = compares.then(|| filled(rows, inputs, |i, j| ((i + j) % 7) as f64 * 1e-3));
        let resident = ops.place(&hessian)?;
        let (begun, mut factoring) = (Instant::now(), Duration::ZERO);
        ops.solve(weights.view(), &hessian, &resident, &settings.matrix, &mut factoring).await?;
        Ok((factoring, begun.elapsed() - factoring))
    };
    // The first time is for compiling.
    let first = run(few).await?;
    let (factoring, seconds) = if first.1 > LONG && pieces.warm_up.is_zero() { first } else { run(few).await? };
    let few = (few, seconds.as_secs_f64());
    let many = match seconds > LONG {
        true => None,
        false => Some((MORE_ROWS * few.0, run(MORE_ROWS * few.0).await?.1.as_secs_f64())),
    };
    let factoring = factoring.min(first.0).as_secs_f64();
    let solving = Solving::of(factoring, few, many);
    Ok(Solving::with_inputs(factoring, solving, cols as f64 / inputs as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: Solving, whole: f64, each_row: f64) {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(found.whole, whole) && close(found.each_row, each_row), "{found:?}, not {whole} and {each_row}");
    }

    #[test]
    fn two_matrices_tell_what_a_row_takes() {
        // Half a second for all rows, and ten milliseconds for each.
        let solving = Solving::of(2.0, (100, 1.5), Some((400, 4.5)));
        check(solving, 2.5, 0.01);
        assert!((solving.seconds(1000.0) - 12.5).abs() < 1e-9);
        // One that was long enough alone, and two of which the first was held up.
        check(Solving::of(2.0, (100, 1.5), None), 2.0, 0.015);
        check(Solving::of(2.0, (100, 5.0), Some((400, 4.0))), 2.0, 0.01);
    }

    #[test]
    fn more_inputs_take_their_square_and_factors_their_cube() {
        let solving = Solving { whole: 3.0, each_row: 0.01 };
        check(Solving::with_inputs(2.0, solving, 1.0), 3.0, 0.01);
        check(Solving::with_inputs(2.0, solving, 2.0), 2.0 * 8.0 + 1.0 * 4.0, 0.04);
    }
}
