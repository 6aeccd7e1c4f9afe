//! One SHA-256 stream without its compression: the scheduler compresses the whole blocks in the lanes.

use std::ops::Range;

use sha2::block_api::compress256;

use super::lanes::{BLOCK_BYTES, Block, INITIAL, State};

/// The state of one SHA-256 stream, padding included (FIPS 180-4, 5.1.1 and 6.2).
#[derive(Clone)]
pub struct Stream {
    pub(super) state: State,
    /// The bytes after the last whole block; at the end of the content they are padded.
    pub(super) rest: [Block; 2],
    length: u64,
}

impl Default for Stream {
    fn default() -> Self {
        Self { state: INITIAL, rest: [[0; BLOCK_BYTES]; 2], length: 0 }
    }
}

impl Stream {
    /// Buffers the bytes of a chunk that are no whole block, and returns the range of its whole blocks.
    pub(super) fn buffer_partial(&mut self, chunk: &[u8]) -> Range<usize> {
        let held = self.buffered();
        self.length += chunk.len() as u64;
        let mut start = 0;
        if held > 0 {
            start = chunk.len().min(BLOCK_BYTES - held);
            self.rest[0][held..held + start].copy_from_slice(&chunk[..start]);
            if held + start < BLOCK_BYTES {
                return start..start;
            }
            compress256(&mut self.state, &self.rest[..1]);
        }
        let end = chunk.len() - (chunk.len() - start) % BLOCK_BYTES;
        self.rest[0][..chunk.len() - end].copy_from_slice(&chunk[end..]);
        start..end
    }

    /// Pads the rest and returns the number of its blocks.
    pub(super) fn pad(&mut self) -> usize {
        let held = self.buffered();
        let rest = self.rest.as_flattened_mut();
        rest[held] = 0x80;
        rest[held + 1..].fill(0);
        let blocks = if held + 1 + size_of::<u64>() <= BLOCK_BYTES { 1 } else { 2 };
        let bits = self.length.wrapping_mul(8).to_be_bytes();
        rest[blocks * BLOCK_BYTES - bits.len()..blocks * BLOCK_BYTES].copy_from_slice(&bits);
        blocks
    }

    /// Bytes of a block that is not whole yet.
    fn buffered(&self) -> usize {
        (self.length % BLOCK_BYTES as u64) as usize
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }
}
