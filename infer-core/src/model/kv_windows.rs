//! [`KvWindows`]: pages for windows of equal length in the pool of one layer, for work that goes layer by layer.

use model_format::DecoderConfig;

use crate::ops::{KvShape, PAGE, RowSpan};

/// Pages for windows of equal length in the pool of one layer.
#[derive(Debug)]
pub struct KvWindows {
    len: usize,
    /// Pages of each window.
    each: usize,
    pages: Vec<u32>,
}

impl KvWindows {
    /// Pages for `windows` windows of `len` tokens.
    pub fn new(windows: usize, len: usize) -> KvWindows {
        let each = len.div_ceil(PAGE);
        let pages = u32::try_from(windows * each).expect("a page number fits u32");
        KvWindows { len, each, pages: (0..pages).collect() }
    }

    /// The shape of a pool with all windows.
    pub fn shape(&self, config: &DecoderConfig) -> KvShape {
        KvShape { kv_heads: config.num_key_value_heads, pages: self.pages.len(), head_dim: config.head_dim }
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.pages.len() / self.each
    }

    /// All rows of the first `windows` windows.
    pub fn spans(&self, windows: usize) -> Vec<RowSpan<'_>> {
        let pages = self.pages.chunks_exact(self.each).take(windows);
        pages.map(|pages| RowSpan { rows: self.len, past_len: 0, pages }).collect()
    }
}
