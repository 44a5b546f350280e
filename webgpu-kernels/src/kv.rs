//! [`KvPool`]: keys and values of one layer on the device, in pages. [`Rows`]: the rows of a batch, with the pages of their sequences.
//! [`crate::rope`] appends to a pool, and [`crate::attention`] reads it. shared/kv_pages.wgsl has the same addresses.

use std::ops::Range;

use half::f16;

use crate::{
    Gpu, Result,
    gpu::{Buffer, Recorder},
};

/// Data type of keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// f16, in pairs: half the memory.
    #[default]
    F16,
    /// f32.
    F32,
    /// 8-bit codes, four to a word. Each group of 32 has an f32 scale, which lies after the row's codes: `value = code * scale`. If the
    /// width of a head is a multiple of 64, a value takes nine bits.
    Q8,
}

/// Values that share a scale in [`KvDtype::Q8`].
pub(crate) const GROUP: usize = 32;

impl KvDtype {
    /// All data types.
    pub const ALL: [KvDtype; 3] = [KvDtype::F16, KvDtype::F32, KvDtype::Q8];

    /// Words of a row: one head's key or value at one position. The number is even, and values are padded to a multiple of eight.
    pub(crate) fn row_words(self, head_dim: usize) -> usize {
        let padded = padded(head_dim);
        match self {
            KvDtype::F16 => padded / 2,
            KvDtype::F32 => padded,
            KvDtype::Q8 => padded / 4 + padded.div_ceil(GROUP).next_multiple_of(2),
        }
    }

    /// The values of rows, with padding.
    pub(crate) fn values(self, head_dim: usize, words: &[u32]) -> Vec<f32> {
        let codes = padded(head_dim) / 4;
        let row = |row: &[u32]| -> Vec<f32> {
            match self {
                KvDtype::F32 => row.iter().map(|word| f32::from_bits(*word)).collect(),
                KvDtype::F16 => halves(row).iter().map(|half| half.to_f32()).collect(),
                KvDtype::Q8 => {
                    let code = |i: usize| f32::from(row[i / 4].to_le_bytes()[i % 4] as i8);
                    (0..4 * codes).map(|i| code(i) * f32::from_bits(row[codes + i / GROUP])).collect()
                }
            }
        };
        words.chunks_exact(self.row_words(head_dim)).flat_map(row).collect()
    }
}

/// Tokens of a page. A power of two: the kernels divide positions by it.
pub const PAGE: usize = 32;

/// Keys and values of one layer: a pool of pages, each for [`PAGE`] tokens of one sequence.
///
/// The words are `[pages, 2, kv_heads, PAGE]` rows of a head each: a page has its keys first, then its values. The position of a token in
/// its sequence determines the place in the page. [`Rows`] has the pages of each sequence.
pub struct KvPool {
    /// Keys, rotated, and values.
    pub kv: Buffer<u32>,
    /// Number of pages.
    pub pages: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Data type of keys and values.
    pub dtype: KvDtype,
}

impl KvPool {
    /// A pool without memory, for a planning recorder.
    pub fn hollow(recorder: &Recorder, kv_heads: usize, pages: usize, head_dim: usize, dtype: KvDtype) -> KvPool {
        let kv = recorder.hollow(pool_words(kv_heads, pages, head_dim, dtype)).expect("a planning recorder");
        KvPool { kv, pages, kv_heads, head_dim, dtype }
    }

    /// Bytes of a pool.
    pub fn bytes(kv_heads: usize, pages: usize, head_dim: usize, dtype: KvDtype) -> u64 {
        token_bytes(kv_heads, head_dim, dtype) * (pages * PAGE) as u64
    }

    /// Bytes of some tokens' keys and values.
    pub(crate) fn bytes_of(&self, tokens: usize) -> u64 {
        token_bytes(self.kv_heads, self.head_dim, self.dtype) * tokens as u64
    }

    /// A pool of zeros.
    ///
    /// Errors: out of memory, or larger than a binding.
    pub fn new(gpu: &Gpu, kv_heads: usize, pages: usize, head_dim: usize, dtype: KvDtype) -> Result<KvPool> {
        let kv = gpu.zeroed(pool_words(kv_heads, pages, head_dim, dtype))?;
        Ok(KvPool { kv, pages, kv_heads, head_dim, dtype })
    }

    /// Panics if a sequence of `rows` has a page that the pool does not have.
    pub(crate) fn assert_has_pages(&self, rows: &Rows, kernel: &str) {
        assert!(rows.end_page <= self.pages, "{kernel}: page {} of a pool of {}", rows.end_page - 1, self.pages);
    }
}

fn pool_words(kv_heads: usize, pages: usize, head_dim: usize, dtype: KvDtype) -> usize {
    2 * kv_heads * pages * PAGE * dtype.row_words(head_dim)
}

/// Bytes of a token's key and value.
pub(crate) fn token_bytes(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> u64 {
    (2 * kv_heads * 4 * dtype.row_words(head_dim)) as u64
}

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct RowSpan<'a> {
    /// Number of rows, one per token.
    pub rows: usize,
    /// Position of the first row: the number of earlier tokens.
    pub past_len: usize,
    /// Pages of the sequence, in order of its tokens: at least `(past_len + rows).div_ceil(PAGE)`.
    pub pages: &'a [u32],
}

impl RowSpan<'_> {
    /// Number of the pages that hold the tokens.
    fn page_count(&self) -> usize {
        (self.past_len + self.rows).div_ceil(PAGE)
    }

    /// The row of a [`KvPool`] with the key of a head at a position. `is_value`: the row with the value.
    pub(crate) fn pool_row(&self, kv_heads: usize, is_value: bool, kv_head: usize, position: usize) -> usize {
        let page = self.pages[position / PAGE] as usize;
        ((2 * page + usize::from(is_value)) * kv_heads + kv_head) * PAGE + position % PAGE
    }
}

/// A [`RowSpan`] on the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceSpan {
    /// The first of its rows in the batch.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row.
    pub past_len: usize,
    /// Index of its page list in the words of [`Rows`].
    pub pages: usize,
}

impl DeviceSpan {
    /// Some of its rows.
    pub fn part(&self, rows: Range<usize>) -> DeviceSpan {
        let DeviceSpan { first_row, past_len, .. } = *self;
        DeviceSpan { first_row: first_row + rows.start, rows: rows.len(), past_len: past_len + rows.start, ..*self }
    }

    /// The rows that are in a range of the batch's rows, if there are any.
    pub fn within(&self, range: &Range<usize>) -> Option<DeviceSpan> {
        let (begin, end) = (self.first_row.max(range.start), (self.first_row + self.rows).min(range.end));
        (begin < end).then(|| self.part(begin - self.first_row..end - self.first_row))
    }
}

/// The rows of a batch: positions and pages, on the host and on the device. Uploaded once per step, and bound by the kernels of every layer.
///
/// The words are two for each row, its position and the index of its page list among the words. Then come the page lists.
pub struct Rows {
    pub(crate) words: Buffer<u32>,
    spans: Vec<DeviceSpan>,
    count: usize,
    /// The largest page number, plus one.
    end_page: usize,
}

impl Rows {
    /// Uploads the rows of a batch. Panics if a span has no row or too few pages.
    pub fn upload(recorder: &mut Recorder, spans: &[RowSpan<'_>]) -> Rows {
        let words = recorder.upload(&Rows::words_of(spans));
        Rows::in_buffer(words, spans)
    }

    /// Rows in a buffer that begins with [`Rows::words_of`].
    pub(crate) fn in_buffer(words: Buffer<u32>, spans: &[RowSpan<'_>]) -> Rows {
        let (mut first_row, mut pages) = (0, 2 * spans.iter().map(|span| span.rows).sum::<usize>());
        let on_device = |span: &RowSpan<'_>| {
            let device = DeviceSpan { first_row, rows: span.rows, past_len: span.past_len, pages };
            first_row += span.rows;
            pages += span.page_count();
            device
        };
        let on_device = spans.iter().map(on_device).collect();
        let used = spans.iter().flat_map(|span| &span.pages[..span.page_count()]);
        let end_page = used.max().map_or(0, |page| *page as usize + 1);
        Rows { words, spans: on_device, count: first_row, end_page }
    }

    /// The words for the device.
    pub(crate) fn words_of(spans: &[RowSpan<'_>]) -> Vec<u32> {
        let mut pages_at = 2 * spans.iter().map(|span| span.rows).sum::<usize>();
        let mut words = Vec::new();
        for span in spans {
            let RowSpan { rows, past_len, pages } = *span;
            let needed = span.page_count();
            assert!(rows > 0, "rows: a span without rows");
            assert!(needed <= pages.len(), "rows: {} tokens in {} pages", past_len + rows, pages.len());
            words.extend((past_len..past_len + rows).flat_map(|position| [position as u32, pages_at as u32]));
            pages_at += needed;
        }
        words.extend(spans.iter().flat_map(|span| &span.pages[..span.page_count()]));
        words
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The spans, in order of their rows.
    pub(crate) fn spans(&self) -> &[DeviceSpan] {
        &self.spans
    }

    /// The largest position, plus one.
    pub(crate) fn end(&self) -> usize {
        self.spans.iter().map(|span| span.past_len + span.rows).max().unwrap_or(0)
    }

    /// The position of the only row. Panics if there are several.
    pub(crate) fn position(&self, kernel: &str) -> usize {
        assert_eq!(self.count, 1, "{kernel}: number of rows");
        self.spans[0].past_len
    }
}

/// Padded width of a head in a pool: kernels load eight values at a time. The padding stays zero.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(8)
}

/// The two f16 of each word.
pub(crate) fn halves(words: &[u32]) -> Vec<f16> {
    words.iter().flat_map(|w| [f16::from_bits(*w as u16), f16::from_bits((w >> 16) as u16)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_positions_with_the_places_of_page_lists_and_then_the_lists() {
        let one = RowSpan { rows: 2, past_len: 31, pages: &[7, 3, 9] };
        let other = RowSpan { rows: 1, past_len: 0, pages: &[5] };
        // The tokens of the first sequence have two of its three pages.
        assert_eq!(Rows::words_of(&[one, other]), [31, 6, 32, 6, 0, 8, 7, 3, 5]);
        // The second token of page 3: of its four heads of 32 rows, the last one has the values of head 1.
        assert_eq!(one.pool_row(2, true, 1, 33), (4 * 3 + 3) * 32 + 1);
        assert_eq!(one.pool_row(2, false, 1, 31), (4 * 7 + 1) * 32 + 31);
    }

    #[test]
    fn spans_are_cut_by_rows_of_the_batch() {
        let span = DeviceSpan { first_row: 10, rows: 5, past_len: 100, pages: 77 };
        let of = |range| span.within(&range).map(|part| (part.first_row, part.rows, part.past_len, part.pages));
        assert_eq!(of(0..10), None);
        assert_eq!(of(0..12), Some((10, 2, 100, 77)));
        assert_eq!(of(13..40), Some((13, 2, 103, 77)));
        assert_eq!(of(15..40), None);
    }
}
