//! Several SHA-256 streams side by side on one core.
//!
//! One stream waits for its own last round all the time, because `sha256rnds2` has a latency of four cycles and more
//! and each round needs the one before. The rounds of independent streams, interleaved in one loop, fill the gaps. Which
//! kernel does that is chosen once, by what the CPU has: see [`Kernel`]. Where it has no SHA extensions, and for a single
//! stream, `sha2` compresses the blocks.

mod block;
#[cfg(any(target_arch = "x86_64", test))]
mod divided;
#[cfg(test)]
mod divided_portable;
#[cfg(target_arch = "x86_64")]
mod divided_x86;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use sha2::block_api::compress256;

pub use block::{BLOCK_BYTES, Block, INITIAL, Lane, State};

/// Streams side by side at most: the four of [`Kernel::Divided`]. More gain nothing in the other kernels either, because
/// the SHA instructions reach 16 registers.
pub const LANES_MAX: usize = 4;

/// Blocks from which on it is worth several calls to leave out each lane in turn.
#[cfg(target_arch = "x86_64")]
const TURNS_BLOCKS_MIN: usize = 16;

/// Blocks from which on [`Kernel::Divided`] is worth the message that it expands before its first round.
#[cfg(target_arch = "x86_64")]
const DIVIDED_BLOCKS_MIN: usize = 4;

/// The ways to compress several streams, the better ones first. The rates are those of four lanes on a Zen 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Vector units expand the messages, the SHA unit makes the rounds (5.3 GB/s).
    Divided,
    /// The SHA unit does both, with the 32 registers and three operands of AVX-512 for what is beside it (4.1 GB/s).
    ShaNiAvx512,
    /// The same with three operands, which three lanes are quicker with.
    ShaNiAvx2,
    /// The same with the SHA extensions alone (3.7 GB/s).
    ShaNi,
    /// One stream after the other, by the `sha2` crate (1.8 GB/s with SHA extensions).
    Sha2,
}

impl Kernel {
    /// All of them, the best first.
    pub const ALL: [Self; 5] = [Self::Divided, Self::ShaNiAvx512, Self::ShaNiAvx2, Self::ShaNi, Self::Sha2];

    /// Whether this CPU can run it.
    #[must_use]
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Divided => divided_x86::available(),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNiAvx512 => sha_ni::avx512_available(),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNiAvx2 => sha_ni::avx2_available(),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi => sha_ni::available(),
            Self::Sha2 => true,
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Advances all lanes (at most [`LANES_MAX`]) by as many blocks as the shortest of them has, at most `most`.
    ///
    /// # Panics
    /// When there are more than [`LANES_MAX`], or the CPU lacks what the kernel needs.
    pub fn advance(self, lanes: &mut [Lane<'_>], most: usize) {
        assert!(lanes.len() <= LANES_MAX, "more than {LANES_MAX} lanes");
        let count = lanes.iter().map(|lane| lane.blocks.len()).min().unwrap_or(0).min(most);
        if count == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if lanes.len() > 1 && self != Self::Sha2 {
            return self.side_by_side(lanes, count);
        }
        for lane in lanes {
            let (now, later) = lane.blocks.split_at(count);
            compress256(lane.state, now);
            lane.blocks = later;
        }
    }

    /// The best for each number of lanes, measured on a Zen 4: with more of them the rate is not lower, calls of a few
    /// blocks aside, where it is within 4 %. Where a kernel is slower
    /// with all lanes than without one of them, each lane in turn is left out where that is worth the calls.
    #[cfg(target_arch = "x86_64")]
    fn side_by_side(self, lanes: &mut [Lane<'_>], count: usize) {
        use sha_ni::{compress, compress_avx2, compress_avx512};
        match (self, lanes) {
            (Self::Divided, [a, b, c, d]) if count >= DIVIDED_BLOCKS_MIN => divided_x86::compress([a, b, c, d], count),
            (Self::Divided | Self::ShaNiAvx512, [a, b]) => compress_avx512([a, b], count),
            (Self::Divided | Self::ShaNiAvx512, [a, b, c]) => compress_avx512([a, b, c], count),
            (Self::ShaNiAvx512, [a, b, c, d]) if count >= TURNS_BLOCKS_MIN => {
                compress_avx512([&mut *a, &mut *b, &mut *c], count / 3);
                compress_avx512([&mut *a, &mut *b, &mut *d], count / 3);
                compress_avx512([&mut *a, &mut *c, &mut *d], count / 3);
                compress_avx512([&mut *b, &mut *c, &mut *d], count / 3);
                compress_avx512([a, b, c, d], count % 3);
            }
            (Self::Divided | Self::ShaNiAvx512, [a, b, c, d]) => compress_avx512([a, b, c, d], count),
            (Self::ShaNiAvx2, [a, b, c]) => compress_avx2([a, b, c], count),
            (_, [a, b]) => compress([a, b], count),
            (_, [a, b, c]) if count >= TURNS_BLOCKS_MIN => {
                compress([&mut *a, &mut *b], count / 2);
                compress([&mut *a, &mut *c], count / 2);
                compress([&mut *b, &mut *c], count / 2);
                compress([a, b, c], count % 2);
            }
            (_, [a, b, c]) => compress([a, b, c], count),
            (_, [a, b, c, d]) => compress([a, b, c, d], count),
            _ => unreachable!("from 2 to {LANES_MAX} lanes"),
        }
    }
}

/// Advances all lanes (at most [`LANES_MAX`]) by as many blocks as the shortest of them has, at most `most`, with the best
/// kernel of this CPU.
///
/// # Panics
/// When there are more than [`LANES_MAX`].
pub fn advance(lanes: &mut [Lane<'_>], most: usize) {
    static BEST: LazyLock<Kernel> =
        LazyLock::new(|| Kernel::ALL.into_iter().find(|kernel| kernel.available()).unwrap_or(Kernel::Sha2));
    BEST.advance(lanes, most);
}
