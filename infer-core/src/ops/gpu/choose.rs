//! The choice of the next token on a GPU.

use webgpu_kernels::{Matrix, argmax::Argmax, gpu::Buffer, sample::Sample};

use super::{GpuOps, GpuTensor, reads::Reading};
use crate::{
    Result,
    ops::{Choose, Past, Rules},
};

/// A token chosen on the device.
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
        Argmax { rows: 1, cols: logits.cols }.record(&mut self.recorder, logits.values(), &id);
        Ok(GpuToken { reading: self.begin_read(&id)?, id })
    }

    fn new_draw(&mut self, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Option<Sample>> {
        // Drawing on the device only pays with lookahead.
        let is_off = Sample::NAMES.iter().any(|name| self.gpu.is_off(name));
        if self.ahead == 0 || cols > Sample::MOST_COLS || is_off {
            return Ok(None);
        }
        Ok(Some(self.recorder.with_room(|gpu| Sample::new(gpu, rules, cols, history))?))
    }

    fn draw(&mut self, logits: &GpuTensor, with: &Sample, random: f64) -> Result<GpuToken> {
        assert_eq!(logits.rows, 1, "draw: from one row");
        let id = self.token_word();
        with.record(&mut self.recorder, logits.values(), random, &id);
        Ok(GpuToken { reading: self.begin_read(&id)?, id })
    }

    async fn choose_rows(&mut self, logits: &GpuTensor, rows: usize) -> Result<Vec<u32>> {
        assert_eq!(logits.rows, rows, "choose_rows: rows");
        let ids = self.recorder.temporary(rows);
        Argmax { rows, cols: logits.cols }.record(&mut self.recorder, logits.values(), &ids);
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
