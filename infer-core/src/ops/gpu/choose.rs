//! The choice of the next tokens on a GPU.

use webgpu_kernels::{
    Matrix,
    argmax::Argmax,
    gather_tokens::{CHOSEN, GatherTokens},
    gpu::Buffer,
    sample::{Sample, SampleRow, SampleRows},
};

use super::{GpuOps, GpuTensor, reads::Reading};
use crate::{
    Result,
    ops::{Choice, Choose, Past, Rules, Source},
};

/// Tokens chosen on the device.
pub struct GpuTokens {
    ids: Buffer<u32>,
    reading: Reading<u32>,
}

impl Choose for GpuOps {
    type Tokens = GpuTokens;
    type Draw = Sample;

    fn ahead(&self) -> usize {
        self.ahead
    }

    fn new_draw(&mut self, rules: Rules, cols: usize, history: Option<&[Past]>) -> Result<Option<Sample>> {
        // Drawing on the device only pays with lookahead.
        let is_off = Sample::NAMES.iter().any(|name| self.gpu.is_off(name));
        if self.ahead == 0 || cols > Sample::MOST_COLS || is_off {
            return Ok(None);
        }
        Ok(Some(self.recorder.with_room(|gpu| Sample::new(gpu, rules, cols, history))?))
    }

    fn choose(&mut self, logits: &GpuTensor, choices: &[Choice<'_, Sample>]) -> Result<GpuTokens> {
        assert_eq!(logits.rows, choices.len(), "choose: one choice for each row");
        let ids = if logits.rows == 1 { self.token_word() } else { self.recorder.temporary(logits.rows) };
        if choices.iter().all(|choice| matches!(choice, Choice::MostLikely)) {
            let argmax = Argmax { rows: logits.rows, cols: logits.cols };
            argmax.record(&mut self.recorder, logits.values(), &ids);
        } else {
            let rows: Vec<SampleRow<'_>> = choices.iter().map(sample_row).collect();
            SampleRows { cols: logits.cols, rows: &rows }.record(&mut self.recorder, logits.values(), &ids);
        }
        Ok(GpuTokens { reading: self.begin_read(&ids)?, ids })
    }

    fn embedding_of(&mut self, table: &Matrix, sources: &[Source], tokens: &GpuTokens, scale: f32) -> GpuTensor {
        let is_same = sources.len() == tokens.ids.len()
            && sources.iter().enumerate().all(|(row, source)| *source == Source::Chosen(row));
        let y = self.temporary(sources.len(), table.cols);
        if is_same {
            table.embedding(&mut self.recorder, &tokens.ids, sources.len(), scale, &y.values);
            return y;
        }
        let words: Vec<u32> = sources.iter().map(|source| source_word(*source)).collect();
        let words = self.recorder.upload(&words);
        let ids = self.recorder.temporary(sources.len());
        GatherTokens { count: sources.len() }.record(&mut self.recorder, &words, &tokens.ids, &ids);
        table.embedding(&mut self.recorder, &ids, sources.len(), scale, &y.values);
        y
    }

    async fn tokens(&mut self, tokens: GpuTokens) -> Result<Vec<u32>> {
        self.finish_read(tokens.reading).await
    }

    fn take_notice(&mut self) -> Option<String> {
        self.chains.take_notice()
    }
}

fn sample_row<'a>(choice: &Choice<'a, Sample>) -> SampleRow<'a> {
    match *choice {
        Choice::MostLikely => SampleRow { with: None, random: 0.0 },
        Choice::Drawn { by, random } => SampleRow { with: Some(by), random },
    }
}

/// A source as [`GatherTokens`] reads it.
fn source_word(source: Source) -> u32 {
    match source {
        Source::Id(id) => id,
        Source::Chosen(row) => CHOSEN | u32::try_from(row).expect("a row number fits u32"),
    }
}
