//! The memory that files are read into: 64 KB pieces on page boundaries, registered with the ring.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use tokio_uring::buf::{IoBuf, IoBufMut};

/// Bytes a read asks for. SHA-256 takes some 40 us over it, so that a submission's cost is lost in it, and
/// it stays in the second-level cache between the two hashers.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Registered memory is charged by the page: aligned, 64 KB is 16 pages; unaligned, 17 (mlock(2), RLIMIT_MEMLOCK).
const PAGE_BYTES: usize = 4096;

const LAYOUT: Layout = match Layout::from_size_align(CHUNK_BYTES, PAGE_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
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
        // SAFETY: allocated in `default` with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), LAYOUT) }
    }
}

// SAFETY: the pointer is fixed for the value's life, moving the value does not move the memory, and all
// CHUNK_BYTES are initialised (zeroed at allocation).
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

// SAFETY: the same pointer, to memory that this value alone owns.
unsafe impl IoBufMut for Chunk {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _: usize) {} // all of it always is
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_aligned_zeroed_and_its_own() {
        let mut chunks: Vec<Chunk> = (0..3).map(|_| Chunk::default()).collect();
        for (at, chunk) in chunks.iter_mut().enumerate() {
            assert_eq!(chunk.stable_ptr() as usize % PAGE_BYTES, 0);
            // SAFETY: the whole chunk is initialised and borrowed by nobody else.
            let bytes = unsafe { std::slice::from_raw_parts_mut(chunk.stable_mut_ptr(), chunk.bytes_total()) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(at as u8 + 1);
        }
    }
}
