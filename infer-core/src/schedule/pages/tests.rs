//! Pages against a reference that keeps plain lists of prefixes.

use super::*;
use proptest::{collection::vec, prelude::*};

/// One operation. Tables are numbered, modulo their count.
#[derive(Debug, Clone)]
enum Operation {
    Open {
        letters: Vec<u32>,
        most: usize,
    },
    /// Appends `count` tokens.
    Write {
        table: usize,
        letter: u32,
        count: usize,
    },
    Grow {
        table: usize,
        more: usize,
    },
    Adopt {
        table: usize,
        letters: Vec<u32>,
    },
    Truncate {
        table: usize,
        len: usize,
    },
    Close {
        table: usize,
    },
    Clear,
}

/// A text with a page for each letter.
fn text(letters: &[u32]) -> Vec<u32> {
    letters.iter().flat_map(|&letter| [letter; PAGE]).collect()
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let letters = || vec(0_u32..2, 0..5);
    let table = || 0_usize..6;
    let count = prop_oneof![Just(1_usize), Just(5), Just(31), Just(32), Just(64), Just(70)];
    prop_oneof![
        3 => (letters(), 0_usize..160).prop_map(|(letters, most)| Open { letters, most }),
        6 => (table(), 0_u32..2, count).prop_map(|(table, letter, count)| Write { table, letter, count }),
        1 => (table(), 0_usize..100).prop_map(|(table, more)| Grow { table, more }),
        2 => (table(), letters()).prop_map(|(table, letters)| Adopt { table, letters }),
        2 => (table(), 0_usize..160).prop_map(|(table, len)| Truncate { table, len }),
        3 => table().prop_map(|table| Close { table }),
        1 => Just(Clear),
    ]
}

/// The same bookkeeping by plain lists of prefixes.
#[derive(Default)]
struct Reference {
    total: usize,
    clock: usize,
    /// Stored prefixes, each with the time of its last release. Owners are found by looking.
    stored: Vec<(Vec<u32>, usize)>,
    tables: Vec<ReferenceTable>,
}

/// A table of the reference, with its tokens.
#[derive(Default)]
struct ReferenceTable {
    tokens: Vec<u32>,
    pages: usize,
    stored: usize,
}

impl Reference {
    fn owners(&self, prefix: &[u32]) -> usize {
        let has =
            |table: &&ReferenceTable| prefix.len() <= table.stored * PAGE && table.tokens[..prefix.len()] == *prefix;
        self.tables.iter().filter(has).count()
    }

    fn is_stored(&self, prefix: &[u32]) -> bool {
        self.stored.iter().any(|(stored, _)| stored == prefix)
    }

    fn free(&self) -> usize {
        let owned = self.stored.iter().filter(|(prefix, _)| self.owners(prefix) > 0).count();
        self.total - owned - self.tables.iter().map(|table| table.pages - table.stored).sum::<usize>()
    }

    fn adopt(&mut self, table: usize, tokens: &[u32], most: usize) {
        let ReferenceTable { tokens: written, pages, stored } = &self.tables[table];
        let (mut len, mut pages) = (written.len(), *pages);
        if stored * PAGE != len {
            return;
        }
        while len + PAGE <= most.min(tokens.len()) && self.is_stored(&tokens[..len + PAGE]) {
            len += PAGE;
            pages = len / PAGE;
        }
        self.tables[table] = ReferenceTable { tokens: tokens[..len].to_vec(), pages, stored: len / PAGE };
    }

    fn grow(&mut self, table: usize, len: usize) -> bool {
        let missing = len.div_ceil(PAGE).saturating_sub(self.tables[table].pages);
        if missing > self.free() {
            return false;
        }
        self.tables[table].pages += missing;
        // Evicts until the stored pages fit beside the others.
        let others: usize = self.tables.iter().map(|table| table.pages - table.stored).sum();
        while self.stored.len() + others > self.total {
            let idle = self.stored.iter().enumerate().filter(|(_, (prefix, _))| self.owners(prefix) == 0);
            let (oldest, _) = idle.min_by_key(|(_, (_, released))| *released).unwrap();
            self.stored.remove(oldest);
        }
        true
    }

    fn commit(&mut self, table: usize) {
        let ReferenceTable { tokens, stored, .. } = &self.tables[table];
        for len in stored + 1..=tokens.len() / PAGE {
            if !self.is_stored(&tokens[..len * PAGE]) {
                self.stored.push((tokens[..len * PAGE].to_vec(), 0));
            }
        }
        self.tables[table].stored = tokens.len() / PAGE;
    }

    /// Keeps `pages` pages.
    fn release(&mut self, table: usize, pages: usize) {
        while self.tables[table].pages > pages {
            let ReferenceTable { tokens, pages, stored } = &mut self.tables[table];
            *pages -= 1;
            if *stored > *pages {
                *stored = *pages;
                self.clock += 1;
                let prefix = &tokens[..(*pages + 1) * PAGE];
                self.stored.iter_mut().find(|(stored, _)| stored == prefix).unwrap().1 = self.clock;
            }
        }
    }

    fn truncate(&mut self, table: usize, len: usize) -> usize {
        self.release(table, len.div_ceil(PAGE));
        let cut = len / PAGE;
        if self.tables[table].stored <= cut {
            return len;
        }
        let prefix = self.tables[table].tokens[..(cut + 1) * PAGE].to_vec();
        if self.owners(&prefix) > 1 {
            self.release(table, cut);
            return cut * PAGE;
        }
        self.tables[table].stored = cut;
        self.stored.retain(|(stored, _)| !stored.starts_with(&prefix));
        len
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn agrees_with_lists_of_prefixes(total in 1_usize..14, operations in vec(operation(), 1..80)) {
        let mut pages = Pages::new(total);
        let mut reference = Reference { total, ..Reference::default() };
        let mut tables: Vec<Table> = Vec::new();
        let mut memory = vec![[u32::MAX; PAGE]; total];
        for operation in operations {
            let at = |table: usize| (!tables.is_empty()).then(|| table % tables.len());
            match operation {
                Operation::Open { letters, most } => {
                    let tokens = text(&letters);
                    let (table, found) = pages.open(false, &tokens, most);
                    tables.push(table);
                    reference.tables.push(ReferenceTable::default());
                    reference.adopt(tables.len() - 1, &tokens, most);
                    prop_assert_eq!(found, reference.tables[tables.len() - 1].tokens.len());
                }
                Operation::Write { table, letter, count } => {
                    let Some(at) = at(table) else { continue };
                    let start = reference.tables[at].tokens.len();
                    let grown = pages.grow(&mut tables[at], start + count);
                    prop_assert_eq!(grown.is_ok(), reference.grow(at, start + count));
                    if grown.is_ok() {
                        for position in start..start + count {
                            memory[tables[at].pages()[position / PAGE] as usize][position % PAGE] = letter;
                        }
                        reference.tables[at].tokens.extend(vec![letter; count]);
                        reference.commit(at);
                        pages.commit(&mut tables[at], &reference.tables[at].tokens);
                    }
                }
                Operation::Grow { table, more } => {
                    let Some(at) = at(table) else { continue };
                    let len = reference.tables[at].tokens.len() + more;
                    prop_assert_eq!(pages.grow(&mut tables[at], len).is_ok(), reference.grow(at, len));
                }
                Operation::Adopt { table, letters } => {
                    let Some(at) = at(table) else { continue };
                    let mut tokens = reference.tables[at].tokens.clone();
                    let len = tokens.len();
                    tokens.extend(text(&letters));
                    reference.adopt(at, &tokens, tokens.len());
                    let adopted = pages.adopt(&mut tables[at], &tokens, len, tokens.len());
                    prop_assert_eq!(adopted, reference.tables[at].tokens.len());
                }
                Operation::Truncate { table, len } => {
                    let Some(at) = at(table) else { continue };
                    let len = len.min(reference.tables[at].tokens.len());
                    let kept = pages.truncate(&mut tables[at], len);
                    prop_assert_eq!(kept, reference.truncate(at, len));
                    reference.tables[at].tokens.truncate(kept);
                }
                Operation::Close { table } => {
                    let Some(at) = at(table) else { continue };
                    pages.close(tables.remove(at));
                    reference.release(at, 0);
                    reference.tables.remove(at);
                }
                Operation::Clear => {
                    pages.clear();
                    let owned = |prefix: &[u32]| reference.owners(prefix) > 0;
                    let stored = reference.stored.iter().filter(|(prefix, _)| owned(prefix)).cloned().collect();
                    reference.stored = stored;
                }
            }
            pages.check(&tables.iter().collect::<Vec<_>>());
            prop_assert_eq!(pages.free(), reference.free());
            for (table, expected) in tables.iter().zip(&reference.tables) {
                prop_assert_eq!(table.pages().len(), expected.pages);
                for (position, &token) in expected.tokens.iter().enumerate() {
                    prop_assert_eq!(memory[table.pages()[position / PAGE] as usize][position % PAGE], token);
                }
            }
        }
    }
}

#[test]
fn long_texts_share_nothing_with_short_ones() {
    let (mut pages, tokens) = (Pages::new(4), text(&[1, 2]));
    let (mut table, _) = pages.open(false, &tokens, 64);
    pages.grow(&mut table, 64).unwrap();
    pages.commit(&mut table, &tokens);
    pages.close(table);
    let (long, found) = pages.open(true, &tokens, 64);
    assert_eq!(found, 0);
    pages.close(long);
    let (short, found) = pages.open(false, &tokens, 63);
    assert_eq!(found, 32);
    pages.close(short);
}

#[test]
fn opening_and_closing_leaves_no_page() {
    let mut pages = Pages::new(10);
    for round in 0..1000_u32 {
        let tokens = text(&[round % 7, round % 3, round]);
        let (mut table, found) = pages.open(false, &tokens, 96);
        pages.grow(&mut table, 90).unwrap();
        if round % 2 == 0 {
            pages.commit(&mut table, &tokens[..found.max(70)]);
        }
        pages.close(table);
        assert_eq!(pages.free(), 10);
    }
    pages.check(&[]);
    pages.clear();
    assert_eq!(pages.free.len(), 10);
    pages.check(&[]);
}
