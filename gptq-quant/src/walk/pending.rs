//! [`PendingMatrix`]: a solved matrix that a thread reports and writes to disk during the next pass over the text.
//!
//! The walk spawns one for each matrix and waits for it before it solves the next. A killed process therefore loses one matrix at
//! most.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use faer::Mat;
use model_format::Param;

use crate::{
    error::Result,
    report::matrix::{MatrixReport, Sample},
    solve::{options::Options, quantized::Quantized},
    store::{Store, Writing},
};

/// A matrix that is solved and not in the store yet.
pub(super) struct PendingMatrix {
    param: Param,
    quantized: Arc<Quantized>,
    /// `None` once joined.
    thread: Option<JoinHandle<Result<MatrixReport>>>,
}

impl PendingMatrix {
    /// Starts the thread. `sample`: rows of the float weights; `products`: the Hessian; `elapsed`: the time of the solution;
    /// `writing`: the store's part of the work.
    pub(super) fn spawn(
        param: &Param,
        quantized: Arc<Quantized>,
        sample: Sample,
        products: Mat<f64>,
        options: Options,
        elapsed: Duration,
        writing: Option<Writing>,
    ) -> PendingMatrix {
        let (of_thread, codes) = (param.clone(), Arc::clone(&quantized));
        let work = move || {
            let report = MatrixReport::new(&of_thread, &sample, &codes, &products, &options);
            drop((sample, products));
            writing.map_or(Ok(()), |write| write())?;
            Ok(MatrixReport { elapsed, ..report })
        };
        PendingMatrix { param: param.clone(), quantized, thread: Some(thread::spawn(work)) }
    }

    /// Waits for the thread, and hands the matrix to the store.
    pub(super) fn store(mut self, store: &mut dyn Store) -> Result<MatrixReport> {
        let thread = self.thread.take().expect("joined once");
        let report = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        store.add(&self.param, &self.quantized, &report)?;
        Ok(report)
    }
}

/// Waits for the thread, so that it never writes to a folder that this process has unlocked.
impl Drop for PendingMatrix {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
