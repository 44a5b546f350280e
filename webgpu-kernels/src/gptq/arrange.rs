//! [`Arrange`]: reorders the rows and columns of a matrix. [`Diagonal`]: replaces its diagonal.

use super::{READ, WRITE, reference};
use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{CaseBuffer, Params, Usage, params},
    matrix::{Matrix, Slice},
};

/// `y[i, j] = scale * sum over s of x[s, r, c]`, where `order` maps `(i, j)` to `(r, c)`.
pub(crate) struct Arrange<'a> {
    pub order: Order,
    /// `[cols]`, for the permuted orders.
    pub perm: Option<&'a Buffer<u32>>,
    /// Splits of x to add.
    pub splits: usize,
    pub scale: f32,
}

/// The source `(r, c)` of an entry `(i, j)`.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// `(i, j)`.
    Plain,
    /// `(i, j)`, and zero on and below the diagonal.
    Upper,
    /// `(max(i, j), min(i, j))`.
    Symmetric,
    /// `(j, i)`.
    Transposed,
    /// `(perm[i], perm[j])`.
    Permuted,
    /// `(i, perm[j])`.
    ColumnsPermuted,
}

/// Some rows of a matrix of f32.
pub(crate) struct Piece {
    pub first: usize,
    pub rows: usize,
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
    pub values: Buffer<f32>,
}

impl Piece {
    /// A slice of a matrix in f32.
    pub fn of(slice: &Slice) -> Piece {
        let stride = slice.format.row_words(slice.cols);
        let values = slice.q_weight.cast();
        Piece { first: slice.first_row, rows: slice.rows, cols: slice.cols, stride, values }
    }

    /// All of a matrix in f32.
    pub fn all(matrix: &Matrix) -> Vec<Piece> {
        matrix.slices.iter().map(Piece::of).collect()
    }
}

params! {
    struct ArrangeParams {
        first: u32, rows: u32, cols: u32, stride: u32, x_first: u32, x_rows: u32, x_stride: u32, splits: u32, scale: f32,
    }
}
params! { struct DiagonalParams { first: u32, rows: u32, cols: u32 } }

/// The record of `Arrange`.
pub static ARRANGE_KERNEL: Kernel = Kernel {
    name: "gptq_arrange",
    wgsl: include_str!("arrange.wgsl"),
    bindings: &[READ, READ, WRITE],
    params: ArrangeParams::LAYOUT,
    cases: arrange_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

/// The record of `Diagonal`.
pub static DIAGONAL_KERNEL: Kernel = Kernel {
    name: "gptq_diagonal",
    wgsl: include_str!("diagonal.wgsl"),
    bindings: &[READ, WRITE],
    params: DiagonalParams::LAYOUT,
    cases: diagonal_cases,
    usage: Usage::Offline,
    ..Kernel::DEFAULTS
};

impl Order {
    fn flag(self) -> &'static str {
        match self {
            Order::Plain => "PLAIN",
            Order::Upper => "UPPER",
            Order::Symmetric => "SYMMETRIC",
            Order::Transposed => "TRANSPOSED",
            Order::Permuted => "PERMUTED",
            Order::ColumnsPermuted => "COLUMNS_PERMUTED",
        }
    }
}

impl Arrange<'_> {
    /// Fills the pieces y from the pieces x, each `[splits, rows, stride]`.
    pub fn record(&self, recorder: &mut Recorder, x: &[Piece], y: &[Piece]) {
        for (x, y) in x.iter().flat_map(|x| y.iter().map(move |y| (x, y))) {
            let params = ArrangeParams {
                first: y.first as u32,
                rows: y.rows as u32,
                cols: y.cols as u32,
                stride: y.stride as u32,
                x_first: x.first as u32,
                x_rows: x.rows as u32,
                x_stride: x.stride as u32,
                splits: self.splits as u32,
                scale: self.scale,
            };
            // An unused binding needs a buffer too.
            let spare = x.values.cast();
            let perm = self.perm.unwrap_or(&spare);
            let buffers = [(&x.values).into(), perm.into(), (&y.values).into()];
            let variant = Variant::new().flag(self.order.flag());
            recorder.dispatch(&ARRANGE_KERNEL, &variant, &params, &buffers, (y.rows * y.cols).div_ceil(256));
        }
    }
}

/// `y[k, k] = values[k]`.
pub(super) struct Diagonal;

impl Diagonal {
    /// `values`: `[cols]`. `y`: some rows of a matrix `[cols, cols]`.
    pub fn record(&self, recorder: &mut Recorder, values: &Buffer<f32>, y: &Piece) {
        assert_eq!(y.stride, y.cols, "Diagonal: rows must have no padding");
        let params = DiagonalParams { first: y.first as u32, rows: y.rows as u32, cols: y.cols as u32 };
        let buffers = [values.into(), (&y.values).into()];
        recorder.dispatch(&DIAGONAL_KERNEL, &Variant::new(), &params, &buffers, y.rows.div_ceil(64));
    }
}

/// First row and rows of x, the same of y, columns, splits and order.
type Shape = ([usize; 2], [usize; 2], usize, usize, Order);

fn arrange_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    use Order::{ColumnsPermuted, Permuted, Plain, Symmetric, Transposed, Upper};
    let shapes: &[Shape] = match set {
        CaseSet::Test => &[
            ([0, 36], [0, 36], 36, 3, Plain),
            ([8, 20], [10, 30], 40, 1, Plain),
            ([0, 33], [0, 33], 33, 1, Upper),
            ([0, 40], [16, 24], 40, 1, Upper),
            ([0, 70], [0, 70], 70, 8, Symmetric),
            ([32, 32], [0, 68], 68, 2, Symmetric),
            ([0, 50], [0, 50], 50, 1, Transposed),
            ([16, 20], [4, 30], 50, 1, Transposed),
            ([0, 45], [0, 45], 45, 1, Permuted),
            ([20, 25], [3, 40], 45, 1, Permuted),
            ([0, 9], [0, 9], 96, 1, ColumnsPermuted),
        ],
        CaseSet::Bench => &[([0, 3072], [0, 3072], 3072, 1, Symmetric), ([0, 3072], [0, 3072], 3072, 1, Permuted)],
    };
    shapes.iter().map(|&shape| arrange_case(shape)).collect()
}

fn arrange_case(([x_first, x_rows], [first, rows], cols, splits, order): Shape) -> Case {
    // Rows of x are padded.
    let (stride, x_stride, scale) = (cols, cols + 4, 0.75);
    let flag = order.flag();
    Case {
        label: format!(
            "{} of {cols}, rows {first} + {rows} from {x_first} + {x_rows}, {splits} splits",
            flag.to_lowercase()
        ),
        variant: Variant::new().flag(flag),
        flops: (splits * rows * cols) as u64,
        bytes: 4 * ((splits + 1) * rows * cols) as u64,
        tolerance: 1e-12,
        buffers: Box::new(move || {
            let mut random = Random::new((cols + order as usize) as u64);
            let mut perm: Vec<u32> = (0..cols as u32).collect();
            (1..cols).rev().for_each(|i| perm.swap(i, random.below(i + 1)));
            vec![
                CaseBuffer::input(&random.values(splits * x_rows * x_stride)),
                CaseBuffer::words(perm),
                CaseBuffer::in_out(&random.values(rows * stride)),
            ]
        }),
        record: Box::new(move |recorder, b| {
            let x = Piece { first: x_first, rows: x_rows, cols, stride: x_stride, values: b[0].cast() };
            let y = Piece { first, rows, cols, stride, values: b[2].cast() };
            Arrange { order, perm: Some(&b[1]), splits, scale }.record(recorder, &[x], &[y]);
        }),
        reference: Box::new(move |b| {
            let perm = &b[1].words;
            let source = |i: usize, j: usize| match order {
                Order::Symmetric => (i.max(j), i.min(j)),
                Order::Transposed => (j, i),
                Order::Permuted => (perm[i] as usize, perm[j] as usize),
                Order::ColumnsPermuted => (i, perm[j] as usize),
                Order::Plain | Order::Upper => (i, j),
            };
            let mut y = b[2].values().to_vec();
            let x = b[0].values();
            for (k, y) in y.iter_mut().enumerate() {
                let (r, c) = source(first + k / cols, k % cols);
                if r >= x_first && r < x_first + x_rows {
                    let sum = reference::sum_of_splits(x, splits, (r - x_first) * x_stride + c);
                    *y = if matches!(order, Order::Upper) && c <= r { 0.0 } else { scale * sum };
                }
            }
            vec![y]
        }),
    }
}

fn diagonal_cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    let shapes: &[(usize, usize, usize)] = match set {
        CaseSet::Test => &[(0, 33, 33), (64, 70, 134), (0, 1, 32)],
        CaseSet::Bench => &[(0, 3072, 3072)],
    };
    let case = |&(first, rows, cols): &(usize, usize, usize)| Case {
        label: format!("{rows} rows of {cols} from {first}"),
        variant: Variant::new(),
        flops: 0,
        bytes: 8 * rows as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut random = Random::new(cols as u64);
            vec![CaseBuffer::input(&random.values(cols)), CaseBuffer::in_out(&random.values(rows * cols))]
        }),
        record: Box::new(move |recorder, b| {
            Diagonal.record(recorder, &b[0].cast(), &Piece { first, rows, cols, stride: cols, values: b[1].cast() });
        }),
        reference: Box::new(move |b| {
            let mut y = b[1].values().to_vec();
            (0..rows).for_each(|k| y[k * cols + first + k] = b[0].values()[first + k]);
            vec![y]
        }),
    };
    shapes.iter().map(case).collect()
}
