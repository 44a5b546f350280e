//! [`LargePages`]: the system's allocator, with large pages for large blocks on Linux.
//!
//! `gptq-quant` allocates thousands of short-lived large blocks; the Hessian of 8192 inputs alone takes half a gigabyte. For a model
//! of 3 billion weights, the kernel would hand out 256 GB in pages of 4 KiB, which took a fifth of the time of a layer.

use std::alloc::{GlobalAlloc, Layout, System};

/// Blocks of this size or more contain aligned large pages wherever they begin.
const LARGE: usize = 4 << 20;

/// The system's allocator, with large pages for large blocks. Set it as `#[global_allocator]`.
pub struct LargePages;

// SAFETY: all memory comes from the system's allocator, which keeps the contract; advice does not change content.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of the system's allocator, which is the same.
        let memory = unsafe { System.alloc(layout) };
        advise(memory, layout.size());
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.alloc_zeroed(layout) };
        advise(memory, layout.size());
        memory
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.realloc(memory, layout, size) };
        advise(memory, size);
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Asks the kernel for large pages. It may refuse, which only costs speed.
#[cfg(target_os = "linux")]
fn advise(memory: *mut u8, len: usize) {
    /// Advice must cover whole pages. A kernel with larger pages refuses it.
    const PAGE: usize = 4096;
    if memory.is_null() || len < LARGE {
        return;
    }
    let before = memory.addr().next_multiple_of(PAGE) - memory.addr();
    let pages = memory.wrapping_add(before).cast();
    // SAFETY: the range lies within a block that the caller owns; `MADV_HUGEPAGE` keeps its content.
    let _ = unsafe { libc::madvise(pages, (len - before) / PAGE * PAGE, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_memory: *mut u8, _len: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::LargePages;

    #[global_allocator]
    static ALLOCATOR: LargePages = LargePages;

    /// The flags of the mapping that contains an address, from `/proc/self/smaps`.
    fn flags(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let range = |line: &str| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        };
        let mut lines = maps.lines().skip_while(|line| range(line).is_none_or(|range| !range.contains(&address)));
        lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default().to_owned()
    }

    #[test]
    fn large_blocks_get_large_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            eprintln!("skipped: the kernel has no large pages");
            return;
        }
        let of = |block: &[u8]| flags(block.as_ptr().addr() + block.len() / 2);
        let has = |block: &[u8]| of(block).split_whitespace().any(|flag| flag == "hg");
        let (fresh, zeroed) = (Vec::<u8>::with_capacity(64 << 20), vec![0u8; 64 << 20]);
        let mut grown = vec![1u8; 1 << 20];
        grown.resize(64 << 20, 1);
        assert!(has(&zeroed) && has(&grown), "{} {}", of(&zeroed), of(&grown));
        assert!(flags(fresh.as_ptr().addr() + (32 << 20)).contains(" hg"));
        assert!(grown.iter().all(|&byte| byte == 1) && zeroed.iter().all(|&byte| byte == 0));
    }
}
