//! Both digests of a file in one pass: every chunk goes through SHA-256 and XXH3-128 while it is in cache.

pub mod lanes;
pub mod scheduler;
mod sha256;

use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::xxh3_128;

/// XXH3-128 of content that comes in chunks. This crate takes the widest vectors that the CPU has at run time, while
/// xxhash-rust takes those that the build names (44 GB/s against 26 in a build for every x86-64). For content in one
/// piece xxhash-rust is quicker. Each is the other's oracle in the tests.
pub use twox_hash::xxhash3_128::Hasher as Xxh128Stream;

/// The digests of one file's whole content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256 (FIPS 180-4).
    pub sha256: [u8; 32],
    /// XXH3-128 with seed 0, as the number that `xxhsum -H128` prints.
    pub xxh128: u128,
}

impl Digests {
    /// Hashes content that is in one piece, for which XXH3 has a quicker function than streaming.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self { sha256: Sha256::digest(content).into(), xxh128: xxh3_128(content) }
    }

    /// The SHA-256 as 64 hex digits, as messages have it.
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Both hashers, which take content chunk by chunk.
#[derive(Default)]
pub struct Hasher {
    sha256: Sha256,
    xxh128: Xxh128Stream,
}

impl Hasher {
    /// Hashes the next chunk.
    pub fn update(&mut self, chunk: &[u8]) {
        self.sha256.update(chunk);
        self.xxh128.write(chunk);
    }

    /// The digests of all chunks.
    #[must_use]
    pub fn finish(self) -> Digests {
        Digests { sha256: self.sha256.finalize().into(), xxh128: self.xxh128.finish_128() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn known_answers() {
        // FIPS 180-4 examples; xxhsum -H128 of the same bytes.
        let empty = Digests::of(b"");
        assert_eq!(hex(&empty.sha256), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(format!("{:032x}", empty.xxh128), "99aa06d3014798d86001c324468d497f");
        let abc = Digests::of(b"abc");
        assert_eq!(hex(&abc.sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(format!("{:032x}", abc.xxh128), "06b05ab6733a618578af5f94892f3950");
    }

    proptest! {
        #[test]
        fn chunks_of_any_size_give_the_digests_of_the_whole(
            content in prop::collection::vec(any::<u8>(), 0..5000),
            cuts in prop::collection::vec(1usize..700, 1..40),
        ) {
            let mut hasher = Hasher::default();
            let mut rest = &content[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                hasher.update(chunk);
                rest = after;
            }
            prop_assert_eq!(hasher.finish(), Digests::of(&content));
        }
    }
}
