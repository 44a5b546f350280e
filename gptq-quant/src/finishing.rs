//! [`Finishing`]: what there is to do with a matrix once it is solved, done on a thread of its own beside the next pass over
//! the text: its report, and bringing it to the disk.
//!
//! `pipeline.rs` begins one for each matrix and ends it before it solves the next, so that there is never more than one matrix
//! that a process which is killed would lose.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use faer::Mat;
use model_format::Param;

use crate::{MatrixReport, Options, Quantized, Result, Store, report::matrix::Sample, store::Writing};

/// A matrix that is solved and not in the store yet.
pub(crate) struct Finishing {
    param: Param,
    quantized: Arc<Quantized>,
    /// `None` when it was waited for.
    thread: Option<JoinHandle<Result<MatrixReport>>>,
}

impl Finishing {
    /// Begins with a matrix that took so long to solve. `sample` is of its weights, `products` is the Hessian, `writing` what the
    /// store leaves to be done here.
    pub(crate) fn begin(
        param: &Param,
        quantized: Arc<Quantized>,
        sample: Sample,
        products: Mat<f64>,
        options: Options,
        elapsed: Duration,
        writing: Option<Writing>,
    ) -> Finishing {
        let (of_thread, codes) = (param.clone(), Arc::clone(&quantized));
        let work = move || {
            let report = MatrixReport::new(&of_thread, &sample, &codes, &products, &options);
            drop((sample, products));
            writing.map_or(Ok(()), |write| write())?;
            Ok(MatrixReport { elapsed, ..report })
        };
        Finishing { param: param.clone(), quantized, thread: Some(thread::spawn(work)) }
    }

    /// Waits for it, and hands it to the store.
    pub(crate) fn end(mut self, store: &mut dyn Store) -> Result<MatrixReport> {
        let thread = self.thread.take().expect("waited for once");
        let report = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        store.add(&self.param, &self.quantized, &report)?;
        Ok(report)
    }
}

/// Nobody writes to a folder that another may have by then.
impl Drop for Finishing {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
