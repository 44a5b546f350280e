//! Mutation tests: gives corrupted copies of a valid file to a reader, and limits its memory.
//!
//! `MUTATIONS=1000000` sets the number of copies.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Default number of copies.
const COPIES: u64 = 50_000;
/// Memory limit of a reader in bytes, in addition to twice its input.
const ALLOWANCE: usize = 64 << 20;

/// The system's allocator, with a count of the current thread's allocated bytes.
pub struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // Ignore the failure in an ending thread, whose counters are already destroyed.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        PEAK.with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call forwards the caller's arguments to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// The result of `run`, and the peak of the thread's allocated bytes during `run`, relative to the start.
pub fn held_by<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    (result, (PEAK.get() - before).max(0) as usize)
}

/// Gives corrupted copies of the `good` files to `read`. It may accept or reject them, but must not panic or exceed the
/// memory limit.
#[allow(dead_code, reason = "each test that includes this file calls one of these functions")]
pub fn check(good: &[Vec<u8>], read: impl FnMut(&[u8])) {
    check_copies(COPIES, good, read);
}

/// As [`check`], with another default number of copies, for a slow reader.
#[allow(dead_code, reason = "as above")]
pub fn check_copies(copies: u64, good: &[Vec<u8>], read: impl FnMut(&[u8])) {
    check_share(copies, good, 0, 1, read);
}

/// As [`check`], on two threads. Each has its own reader and half of the copies.
#[allow(dead_code, reason = "as above")]
pub fn check_on_threads<R: FnMut(&[u8])>(good: &[Vec<u8>], reader: impl Fn(u64) -> R + Sync) {
    const THREADS: u64 = 2;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let reader = &reader;
            scope.spawn(move || check_share(COPIES, good, thread, THREADS, reader(thread)));
        }
    });
}

/// Checks every `of`th copy, starting at number `share`.
fn check_share(default: u64, good: &[Vec<u8>], share: u64, of: u64, mut read: impl FnMut(&[u8])) {
    let copies = std::env::var("MUTATIONS").map_or(default, |count| count.parse().expect("MUTATIONS is a number"));
    let mut random = Random(0x5eed);
    for copy in 0..copies {
        let input = spoiled(&good[random.below(good.len())], &mut random);
        if copy % of != share {
            continue;
        }
        let (survived, peak) = held_by(|| catch_unwind(AssertUnwindSafe(|| read(&input))).is_ok());
        assert!(survived, "copy {copy} makes the reader panic: {}", String::from_utf8_lossy(&input));
        let allowed = ALLOWANCE + 2 * input.len();
        assert!(
            peak <= allowed,
            "copy {copy} makes the reader allocate {peak} bytes: {}",
            String::from_utf8_lossy(&input)
        );
    }
}

/// A pseudo-random generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Values that readers often handle wrongly, in JSON and in binary headers.
const TOKENS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1e308",
    b"1e-308",
    b"0.5",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"99999999999999999999999",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"\"../x\"",
    b"\"\\u0000\"",
    b"\"\\ud800\"",
    b"[[[[[[[[",
    b"NaN",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0\0\0\0\0\0\0\0",
    b"\x01\0\0\0\0\0\0\0",
    b"\0\0\0\x01\0\0\0\0",
];

/// A copy of `good` with a few random changes.
pub fn spoiled(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(5) {
        let at = random.below(bytes.len());
        let scale = random.below(8);
        let length = random.below(1 << scale).min(bytes.len() - at);
        let other = random.below(bytes.len());
        match random.below(10) {
            0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 if !bytes.is_empty() => bytes[at] = b"{}[]\",:0123456789-.eatn\\ "[random.below(25)],
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let copied = bytes[at..at + length].to_vec();
                bytes.splice(other..other, copied);
            }
            5 => {
                let copied = bytes[at..at + length].to_vec();
                let end = (other + length).min(bytes.len());
                bytes.splice(other..end, copied);
            }
            6 => {
                let token = TOKENS[random.below(TOKENS.len())];
                let end = (at + token.len()).min(bytes.len());
                bytes.splice(at..end, token.iter().copied());
            }
            // Replace a number by another one.
            7 | 8 => {
                let digit = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |first| at + first);
                let end = bytes[digit..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| digit + n);
                bytes.splice(digit..end, TOKENS[random.below(14)].iter().copied());
            }
            _ if random.below(8) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}
