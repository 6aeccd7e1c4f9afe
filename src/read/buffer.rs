//! The memory that files are read into: chunks of 64 KB on page boundaries, registered with the ring.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use tokio_uring::buf::{IoBuf, IoBufMut};

/// Bytes that one read asks for. SHA-256 takes some 40 us for them, beside which the cost of a submission is small, and
/// they stay in the second-level cache between the two hashers.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The kernel charges registered memory by the page: 64 KB are 16 pages if aligned, else 17 (mlock(2), RLIMIT_MEMLOCK).
const PAGE_BYTES: usize = 4096;

const LAYOUT: Layout = match Layout::from_size_align(CHUNK_BYTES, PAGE_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("the alignment is a power of two"),
};

/// One page-aligned buffer of [`CHUNK_BYTES`].
pub struct Chunk {
    start: NonNull<u8>,
}

impl Default for Chunk {
    fn default() -> Self {
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(LAYOUT) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(LAYOUT)) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: it was allocated in `default` with this layout, and it is freed only here.
        unsafe { dealloc(self.start.as_ptr(), LAYOUT) }
    }
}

// SAFETY: the pointer stays the same while the value lives, moving the value does not move the memory, and all
// CHUNK_BYTES are initialized (zeroed at allocation).
unsafe impl IoBuf for Chunk {
    fn stable_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        CHUNK_BYTES
    }

    fn bytes_total(&self) -> usize {
        CHUNK_BYTES
    }
}

// SAFETY: it is the same pointer, to memory that this value alone owns.
unsafe impl IoBufMut for Chunk {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _: usize) {} // all bytes are initialized from the start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_aligned_zeroed_and_separate() {
        let mut chunks: Vec<Chunk> = (0..3).map(|_| Chunk::default()).collect();
        for (at, chunk) in chunks.iter_mut().enumerate() {
            assert_eq!(chunk.stable_ptr() as usize % PAGE_BYTES, 0);
            // SAFETY: the whole chunk is initialized, and nothing else borrows it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(chunk.stable_mut_ptr(), chunk.bytes_total()) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(at as u8 + 1);
        }
    }
}
