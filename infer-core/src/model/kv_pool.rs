//! [`KvPool`]: keys and values of all layers, in pages that sequences share out among themselves.

use model_format::DecoderConfig;

use super::kv_cache::KvCache;
use crate::{
    Result,
    ops::{Backend, KvShape, Loading, PAGE},
};

/// Keys and values of all layers, in pages of [`PAGE`] tokens. A page has the same number in every layer.
///
/// The pool does not know which pages are in use: a [`KvCache`] or the scheduler's table of a sequence has them.
pub struct KvPool<O: Backend> {
    layers: Vec<O::Kv>,
    pages: usize,
}

impl<O: Loading> KvPool<O> {
    /// A pool of `pages` pages with undefined content. Errors: out of memory.
    pub fn new(ops: &mut O, config: &DecoderConfig, pages: usize) -> Result<KvPool<O>> {
        let shape = KvShape { kv_heads: config.num_key_value_heads, pages, head_dim: config.head_dim };
        let layers = (0..config.num_hidden_layers).map(|_| ops.new_kv(shape)).collect::<Result<_>>()?;
        Ok(KvPool { layers, pages })
    }

    /// A pool for `sequences` sequences of up to `capacity` tokens, and an empty cache for each. Errors: out of memory.
    pub fn with_caches(
        ops: &mut O,
        config: &DecoderConfig,
        sequences: usize,
        capacity: usize,
    ) -> Result<(KvPool<O>, Vec<KvCache>)> {
        let each = capacity.div_ceil(PAGE);
        let pool = KvPool::new(ops, config, sequences * each)?;
        let first_page = |i: usize| u32::try_from(i * each).expect("a page number fits u32");
        let caches = (0..sequences).map(|i| KvCache::new((first_page(i)..first_page(i + 1)).collect(), capacity));
        Ok((pool, caches.collect()))
    }

    /// A pool for one sequence of up to `capacity` tokens, and its empty cache. Errors: out of memory.
    pub fn with_cache(ops: &mut O, config: &DecoderConfig, capacity: usize) -> Result<(KvPool<O>, KvCache)> {
        let (pool, mut caches) = KvPool::with_caches(ops, config, 1, capacity)?;
        Ok((pool, caches.pop().expect("one cache")))
    }
}

impl<O: Backend> KvPool<O> {
    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Keys and values of each layer.
    pub(super) fn layers_mut(&mut self) -> &mut [O::Kv] {
        &mut self.layers
    }
}
