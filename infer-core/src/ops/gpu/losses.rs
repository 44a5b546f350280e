//! Losses, computed on a GPU.

use webgpu_kernels::{cross_entropy::CrossEntropy, kl_divergence::KlDivergence};

use super::{GpuOps, GpuTensor};
use crate::{Result, ops::Losses};

impl Losses for GpuOps {
    async fn cross_entropy(&mut self, logits: &GpuTensor, targets: &[u32]) -> Result<Vec<f32>> {
        assert_eq!(logits.rows, targets.len(), "cross_entropy: one target per row");
        let beyond = targets.iter().find(|&&target| target as usize >= logits.cols);
        assert!(beyond.is_none(), "cross_entropy: target {beyond:?} of {}", logits.cols);
        let targets = self.recorder.upload(targets);
        let losses = self.recorder.temporary(logits.rows);
        let entropy = CrossEntropy { rows: logits.rows, cols: logits.cols };
        entropy.record(&mut self.recorder, logits.values(), &targets, &losses);
        self.read_now(&losses).await
    }

    async fn kl_divergence(&mut self, logits: &GpuTensor, others: &GpuTensor, rows: usize) -> Result<Vec<f32>> {
        assert_eq!((logits.rows, logits.cols), (others.rows, others.cols), "kl_divergence: shapes");
        assert_eq!(logits.rows, rows, "kl_divergence: rows");
        let divergences = self.recorder.temporary(rows);
        let divergence = KlDivergence { rows, cols: logits.cols };
        divergence.record(&mut self.recorder, logits.values(), others.values(), &divergences);
        self.read_now(&divergences).await
    }
}
