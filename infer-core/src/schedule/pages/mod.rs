//! [`Pages`]: the bookkeeping of a paged KV cache.
//!
//! The cache of the device is a pool of pages. A page holds the keys and values of [`PAGE`] tokens in every layer. Pages
//! knows which sequence uses which page, and which full pages are stored for reuse. It does not touch the device.
//!
//! A page is in one of three states:
//!
//! - **free**: no content.
//! - **owned**: in one or more [`Table`]s. A page with several owners is full and stored.
//! - **idle**: stored, in no table. A request with the same prefix finds it, until it is evicted.
//!
//! The index of stored pages is exact. The key of a page is its 32 tokens and the entry of the page before it, so equal keys
//! mean equal prefixes. Ids of entries are never reused. Every owner of a page also owns the pages before it, and tables
//! release their last pages first. Therefore a page is always evicted before the page that it continues, and every idle page
//! can be found.
//!
//! `../scheduler.rs` calls this.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

pub(crate) use crate::ops::PAGE;

/// The pool of pages.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    /// Pages without content.
    free: Vec<u32>,
    /// Idle pages by the time of their last release: the first one is evicted first.
    idle: BTreeMap<u64, u32>,
    /// Stored pages, owned or idle.
    index: HashMap<Key, u32>,
    /// The next id of an entry or time of a release. Smaller ones are [`root`]s.
    next: u64,
}

/// The pages of one sequence, in the order of its tokens. Leading full pages are stored, the others belong to this table
/// alone.
///
/// Give a table back by [`Pages::close`]. A dropped table leaks its pages.
#[derive(Debug)]
#[must_use = "a table that is not closed leaks its pages"]
pub(crate) struct Table {
    pages: Vec<u32>,
    /// Number of leading pages that are stored.
    stored: usize,
    is_long: bool,
}

/// The pool has too few pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfPages;

/// One page of the pool.
#[derive(Debug, Clone, Default)]
struct Page {
    /// Number of tables with this page.
    owners: usize,
    /// Time of the last release, if the page is idle.
    released: u64,
    /// Present if the page is stored.
    entry: Option<Entry>,
}

/// A stored page in the index.
#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u64,
    key: Key,
}

/// The content of a page: its tokens and, by the parent, all tokens before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Id of the entry of the page before, or the root.
    parent: u64,
    tokens: [u32; PAGE],
}

/// The parent of first pages. Keys with the rotary frequencies of long texts have a root of their own.
fn root(is_long: bool) -> u64 {
    u64::from(is_long)
}

impl Table {
    /// The pages in the order of the tokens.
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Number of tokens that the pages can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// True if the keys have the rotary frequencies of long texts.
    pub(crate) fn is_long(&self) -> bool {
        self.is_long
    }
}

impl Pages {
    /// A pool of free pages.
    pub(crate) fn new(pages: usize) -> Pages {
        let count = u32::try_from(pages).expect("page numbers have 32 bits");
        Pages {
            pages: vec![Page::default(); pages],
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            next: 2,
        }
    }

    /// A table that begins with the stored pages of the longest prefix of `tokens[..most]`. Returns the number of tokens
    /// found, a multiple of [`PAGE`].
    ///
    /// `is_long` is true for keys with the rotary frequencies of long texts. Such keys are not shared with short texts.
    pub(crate) fn open(&mut self, is_long: bool, tokens: &[u32], most: usize) -> (Table, usize) {
        let mut table = Table { pages: Vec::new(), stored: 0, is_long };
        let found = self.adopt(&mut table, tokens, 0, most);
        (table, found)
    }

    /// Continues a table of `len` written tokens with the stored pages of `tokens[..most]`. Returns the new length.
    ///
    /// Does nothing unless the written tokens end at a page boundary and are committed. Unwritten pages of the table are
    /// dropped for the adopted ones.
    pub(crate) fn adopt(&mut self, table: &mut Table, tokens: &[u32], len: usize, most: usize) -> usize {
        if table.stored * PAGE != len {
            return len;
        }
        let most = most.min(tokens.len()) / PAGE;
        while table.stored < most {
            let Some(&page) = self.index.get(&self.key(table, tokens)) else { break };
            while table.pages.len() > table.stored {
                self.release_last(table);
            }
            self.own(page);
            table.pages.push(page);
            table.stored += 1;
        }
        table.stored * PAGE
    }

    /// Makes room for `len` tokens: takes free pages, then evicts the idle pages that were released first. Takes all needed
    /// pages or none.
    ///
    /// # Errors
    ///
    /// [`OutOfPages`] if other tables own too many pages.
    pub(crate) fn grow(&mut self, table: &mut Table, len: usize) -> Result<(), OutOfPages> {
        let missing = len.div_ceil(PAGE).saturating_sub(table.pages.len());
        if missing > self.free() {
            return Err(OutOfPages);
        }
        for _ in 0..missing {
            let page = self.free.pop().unwrap_or_else(|| self.evict());
            self.pages[page as usize].owners = 1;
            table.pages.push(page);
        }
        Ok(())
    }

    /// Reports that the pages hold exactly `tokens`, all of them final. Full pages become findable. Where an equal page is
    /// stored already, the table takes it in place of its own, so equal prefixes are stored once.
    pub(crate) fn commit(&mut self, table: &mut Table, tokens: &[u32]) {
        assert!(tokens.len() <= table.capacity(), "commit: tokens without a page");
        while table.stored < tokens.len() / PAGE {
            let key = self.key(table, tokens);
            let own = table.pages[table.stored];
            if let Some(&page) = self.index.get(&key) {
                self.release(own);
                self.own(page);
                table.pages[table.stored] = page;
            } else {
                self.pages[own as usize].entry = Some(Entry { id: self.tick(), key });
                self.index.insert(key, own);
            }
            table.stored += 1;
        }
    }

    /// Keeps the first `len` tokens or fewer, and returns their number.
    ///
    /// The page in which the kept tokens end will be written again. If another table has it too, it is dropped, and the caller
    /// runs its tokens again. If it is stored for this table alone, it can no longer be found.
    pub(crate) fn truncate(&mut self, table: &mut Table, len: usize) -> usize {
        let len = len.min(table.capacity());
        while table.pages.len() > len.div_ceil(PAGE) {
            self.release_last(table);
        }
        let cut = len / PAGE; // the page with the end, if `len` is not a multiple
        if table.stored <= cut {
            return len;
        }
        let page = table.pages[cut];
        if self.pages[page as usize].owners > 1 {
            self.release_last(table);
            return cut * PAGE;
        }
        table.stored = cut;
        self.forget(page);
        len
    }

    /// Ends a sequence. Its stored pages stay findable until they are evicted, the last one first.
    pub(crate) fn close(&mut self, mut table: Table) {
        while !table.pages.is_empty() {
            self.release_last(&mut table);
        }
    }

    /// Forgets all idle pages. After a lost device, close all tables first.
    pub(crate) fn clear(&mut self) {
        while !self.idle.is_empty() {
            let page = self.evict();
            self.free.push(page);
        }
    }

    /// Number of pages that [`Pages::grow`] could take: free and idle ones.
    pub(crate) fn free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// The key of the first page of `table` that is not stored yet.
    fn key(&self, table: &Table, tokens: &[u32]) -> Key {
        let parent = match table.stored {
            0 => root(table.is_long),
            stored => self.pages[table.pages[stored - 1] as usize].entry.expect("the page is stored").id,
        };
        let tokens = tokens[table.stored * PAGE..][..PAGE].try_into().expect("a page of tokens");
        Key { parent, tokens }
    }

    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Adds an owner to a stored page.
    fn own(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if state.owners == 0 {
            self.idle.remove(&state.released);
        }
        state.owners += 1;
    }

    /// Removes an owner. A page without owner becomes idle if it is stored, else free.
    fn release(&mut self, page: u32) {
        let tick = self.tick();
        let state = &mut self.pages[page as usize];
        state.owners -= 1;
        if state.owners > 0 {
            return;
        }
        if state.entry.is_some() {
            state.released = tick;
            self.idle.insert(tick, page);
        } else {
            self.free.push(page);
        }
    }

    /// Drops the last page of a table.
    fn release_last(&mut self, table: &mut Table) {
        let page = table.pages.pop().expect("a page");
        table.stored = table.stored.min(table.pages.len());
        self.release(page);
    }

    /// Removes the first idle page from the index, and returns it.
    fn evict(&mut self) -> u32 {
        let (_, page) = self.idle.pop_first().expect("an idle page");
        let entry = self.pages[page as usize].entry.take().expect("idle pages are stored");
        self.index.remove(&entry.key);
        page
    }

    /// Removes a page from the index, and frees the pages that continue it. No other table has the page, so these are idle.
    fn forget(&mut self, page: u32) {
        let entry = self.pages[page as usize].entry.take().expect("the page is stored");
        self.index.remove(&entry.key);
        let mut gone = HashSet::from([entry.id]);
        let mut unreachable = Vec::new();
        // Pages were released after those that continue them, so parents come first here.
        for (&released, &page) in self.idle.iter().rev() {
            let Entry { id, key } = self.pages[page as usize].entry.expect("idle pages are stored");
            if gone.contains(&key.parent) {
                gone.insert(id);
                unreachable.push(released);
            }
        }
        for released in unreachable {
            let page = self.idle.remove(&released).expect("found above");
            let entry = self.pages[page as usize].entry.take().expect("idle pages are stored");
            self.index.remove(&entry.key);
            self.free.push(page);
        }
    }
}

#[cfg(test)]
impl Pages {
    /// Panics unless every page is in exactly one state and all counts are right. `tables` are all open tables.
    pub(crate) fn check(&self, tables: &[&Table]) {
        let mut owners = vec![0; self.pages.len()];
        for table in tables {
            assert!(table.stored <= table.pages.len());
            let mut parent = root(table.is_long);
            for (at, &page) in table.pages.iter().enumerate() {
                owners[page as usize] += 1;
                let entry = self.pages[page as usize].entry;
                assert_eq!(entry.is_some(), at < table.stored, "leading pages are stored");
                if let Some(entry) = entry {
                    assert_eq!(entry.key.parent, parent, "a table is a chain of entries");
                    parent = entry.id;
                } else {
                    assert_eq!(self.pages[page as usize].owners, 1, "a page that is not stored has one owner");
                }
            }
        }
        let by_id: HashMap<u64, &Page> =
            self.pages.iter().filter_map(|page| Some((page.entry?.id, page))).collect::<HashMap<_, _>>();
        assert_eq!(by_id.len(), self.index.len(), "entries have different ids, and each is in the index");
        let mut states = vec![0; self.pages.len()];
        for &page in &self.free {
            states[page as usize] += 1;
            assert!(self.pages[page as usize].entry.is_none(), "free pages are not stored");
        }
        for (&released, &page) in &self.idle {
            states[page as usize] += 1;
            let page = &self.pages[page as usize];
            assert_eq!(page.released, released);
            let parent = page.entry.expect("idle pages are stored").key.parent;
            if parent > 1 {
                let parent = by_id.get(&parent).expect("an idle page can be found");
                assert!(parent.owners > 0 || parent.released > released, "a page is evicted before its parent");
            }
        }
        for (number, page) in self.pages.iter().enumerate() {
            assert_eq!(page.owners, owners[number], "owners of page {number}");
            assert_eq!(states[number] + usize::from(page.owners > 0), 1, "page {number} is in one state");
            if let Some(entry) = page.entry {
                assert_eq!(self.index.get(&entry.key), Some(&u32::try_from(number).unwrap()));
            }
        }
    }
}
