//! The SHA extensions of x86-64 (Intel SDM, volume 2: SHA256RNDS2, SHA256MSG1, SHA256MSG2), for up to four streams.
//!
//! One text is compiled for three sets of registers. With the SHA extensions alone every instruction overwrites an operand
//! and there are 16 registers, so that the words of three and four streams go through memory. AVX has three operands,
//! and AVX-512 has 32 registers for all that is no SHA instruction.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x, _mm_setzero_si128,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
    _mm_storeu_si128,
};

use super::block::{Block, Lane, ROUND_CONSTANTS, State};

/// The round constants, four a group.
static CONSTANTS: [[u32; 4]; 16] = {
    let mut groups = [[0; 4]; 16];
    let mut at = 0;
    while at < ROUND_CONSTANTS.len() {
        groups[at / 4][at % 4] = ROUND_CONSTANTS[at];
        at += 1;
    }
    groups
};

/// Whether this CPU has the SHA extensions. The standard library asks the CPU once and caches the answer.
pub fn available() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// Whether it has AVX2 besides.
pub fn avx2_available() -> bool {
    available() && is_x86_feature_detected!("avx2")
}

/// Whether it has AVX-512 for short registers besides.
pub fn avx512_available() -> bool {
    avx2_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
}

/// Defines a function that advances each lane by `count` blocks, and its rounds, compiled for the features.
macro_rules! kernel {
    ($compress:ident, $rounds:ident, $available:path, $features:literal) => {
        /// Advances each lane by `count` blocks.
        ///
        /// # Panics
        /// When a lane has fewer blocks, or the CPU lacks the extensions.
        pub fn $compress<const N: usize>(lanes: [&mut Lane<'_>; N], count: usize) {
            assert!($available() && lanes.iter().all(|lane| lane.blocks.len() >= count));
            let mut states = lanes.each_ref().map(|lane| *lane.state);
            let blocks = lanes.each_ref().map(|lane| lane.blocks);
            // SAFETY: the CPU has the features, and every lane has `count` blocks: both were just checked.
            unsafe { $rounds(&mut states, blocks, count) };
            for (lane, state) in lanes.into_iter().zip(states) {
                *lane.state = state;
                lane.blocks = &lane.blocks[count..];
            }
        }

        /// # Safety
        /// The CPU has the features, and each of `blocks` has `count` of them.
        #[target_feature(enable = $features)]
        unsafe fn $rounds<const N: usize>(states: &mut [State; N], blocks: [&[Block]; N], count: usize) {
            // The input's words are big-endian.
            let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
            let zero = _mm_setzero_si128();
            // The instructions take the state as (a, b, e, f) and (c, d, g, h).
            let (mut abef, mut cdgh) = ([zero; N], [zero; N]);
            for lane in 0..N {
                let half = states[lane].as_ptr().cast::<__m128i>();
                // SAFETY: a state is two halves of 16 bytes; loadu asks for no alignment.
                let (abcd, efgh) = unsafe { (_mm_loadu_si128(half), _mm_loadu_si128(half.add(1))) };
                let (badc, hgfe) = (_mm_shuffle_epi32(abcd, 0xb1), _mm_shuffle_epi32(efgh, 0x1b));
                abef[lane] = _mm_alignr_epi8(badc, hgfe, 8);
                cdgh[lane] = _mm_blend_epi16(hgfe, badc, 0xf0);
            }
            for at in 0..count {
                let before = (abef, cdgh);
                let mut words = [[zero; 4]; N];
                for lane in 0..N {
                    // SAFETY: `at` is below `count`, which each lane's blocks reach.
                    let block = unsafe { blocks[lane].get_unchecked(at) }.as_ptr().cast::<__m128i>();
                    words[lane] = [0, 1, 2, 3].map(|quarter| {
                        // SAFETY: a block is four quarters of 16 bytes.
                        _mm_shuffle_epi8(unsafe { _mm_loadu_si128(block.add(quarter)) }, big_endian)
                    });
                }
                four_rounds!(N, abef, cdgh, words, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
                for lane in 0..N {
                    abef[lane] = _mm_add_epi32(abef[lane], before.0[lane]);
                    cdgh[lane] = _mm_add_epi32(cdgh[lane], before.1[lane]);
                }
            }
            for lane in 0..N {
                let (feba, dchg) = (_mm_shuffle_epi32(abef[lane], 0x1b), _mm_shuffle_epi32(cdgh[lane], 0xb1));
                let half = states[lane].as_mut_ptr().cast::<__m128i>();
                // SAFETY: as for the loads above.
                unsafe {
                    _mm_storeu_si128(half, _mm_blend_epi16(feba, dchg, 0xf0));
                    _mm_storeu_si128(half.add(1), _mm_alignr_epi8(dchg, feba, 8));
                }
            }
        }
    };
}

/// Four rounds of each stream for each group of four words. A macro unrolls them, so that every index is a constant and
/// all words stay in registers.
macro_rules! four_rounds {
    ($N:ident, $abef:ident, $cdgh:ident, $words:ident, $($group:literal)*) => {$({
        // SAFETY: a group is 16 bytes.
        let constants = unsafe { _mm_loadu_si128(CONSTANTS[$group].as_ptr().cast()) };
        let mut input = [_mm_setzero_si128(); $N];
        for lane in 0..$N {
            input[lane] = _mm_add_epi32($words[lane][$group % 4], constants);
        }
        for lane in 0..$N {
            $cdgh[lane] = _mm_sha256rnds2_epu32($cdgh[lane], $abef[lane], input[lane]);
        }
        // The words for four groups later overwrite those just used.
        if $group < 12 {
            for lane in 0..$N {
                let [a, b, c, d] = [0, 1, 2, 3].map(|next| $words[lane][($group + next) % 4]);
                let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4));
                $words[lane][$group % 4] = _mm_sha256msg2_epu32(sum, d);
            }
        }
        for lane in 0..$N {
            $abef[lane] = _mm_sha256rnds2_epu32($abef[lane], $cdgh[lane], _mm_shuffle_epi32(input[lane], 0x0e));
        }
    })*};
}

kernel!(compress, rounds, available, "sha,sse2,ssse3,sse4.1");
kernel!(compress_avx2, rounds_avx2, avx2_available, "sha,avx2");
kernel!(compress_avx512, rounds_avx512, avx512_available, "sha,avx2,avx512f,avx512vl,avx512bw");
