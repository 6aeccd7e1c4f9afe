//! Both digests of a file in one pass: every chunk goes through SHA-256 and XXH3-128 while it is in cache.

pub mod lanes;
pub mod scheduler;

use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The digests of one file's whole content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256 (FIPS 180-4).
    pub sha256: [u8; 32],
    /// XXH3-128 with seed 0, as the number that `xxhsum -H128` prints.
    pub xxh128: u128,
}

impl Digests {
    /// Of content that stands in one piece. XXH3 has a shorter way for that than streaming.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self { sha256: Sha256::digest(content).into(), xxh128: xxh3_128(content) }
    }
}

/// The pair of hashers, fed chunk by chunk and used again for the next file.
#[derive(Default)]
pub struct Hasher {
    sha256: Sha256,
    xxh3: Xxh3,
}

impl Hasher {
    /// Feeds the next chunk.
    pub fn update(&mut self, chunk: &[u8]) {
        self.sha256.update(chunk);
        self.xxh3.update(chunk);
    }

    /// The digests of all that was fed; the hasher is as new afterwards.
    pub fn finish(&mut self) -> Digests {
        let digests = Digests { sha256: self.sha256.finalize_reset().into(), xxh128: self.xxh3.digest128() };
        self.xxh3.reset();
        digests
    }

    /// Forgets what was fed.
    pub fn reset(&mut self) {
        sha2::Digest::reset(&mut self.sha256);
        self.xxh3.reset();
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
            for round in 0..2 {
                let mut rest = &content[..];
                for cut in cuts.iter().cycle() {
                    if rest.is_empty() { break }
                    let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                    hasher.update(chunk);
                    rest = after;
                }
                prop_assert_eq!(hasher.finish(), Digests::of(&content), "round {}", round);
            }
        }
    }
}
