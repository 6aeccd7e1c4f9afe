//! Several SHA-256 streams side by side on one core.
//!
//! One stream waits for its own last round all the time, because `sha256rnds2` has a latency of four cycles and more
//! and each round needs the one before. The rounds of independent streams, interleaved in one loop, fill the gaps: two
//! to four together run at 1.3 (where the unit starts one such instruction every other cycle) to 2.3 times the rate of
//! one. Where the CPU has no SHA extensions, and for a single stream, `sha2` compresses the blocks.

#![allow(unsafe_code)]

use sha2::block_api::compress256;

/// Bytes of a block (FIPS 180-4).
pub const BLOCK_BYTES: usize = 64;

/// Streams side by side at most. More gain nothing, because there are only 16 registers.
pub const LANES_MAX: usize = 4;

/// One block of input.
pub type Block = [u8; BLOCK_BYTES];

/// A stream's chaining value between blocks.
pub type State = [u32; 8];

/// The chaining value before the first block (FIPS 180-4, 5.3.3).
pub const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Whole blocks of one stream, which are compressed in order.
pub struct Lane<'a> {
    /// The stream's chaining value.
    pub state: &'a mut State,
    /// The blocks that are not compressed yet.
    pub blocks: &'a [Block],
}

/// Advances all lanes (at most [`LANES_MAX`]) by as many blocks as the shortest of them has, at most `most`.
///
/// # Panics
/// When there are more than [`LANES_MAX`].
pub fn advance(lanes: &mut [Lane<'_>], most: usize) {
    let count = lanes.iter().map(|lane| lane.blocks.len()).min().unwrap_or(0).min(most);
    if count == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if lanes.len() > 1 && sha_ni::available() {
        match lanes {
            [a, b] => sha_ni::compress([a, b], count),
            [a, b, c] => sha_ni::compress([a, b, c], count),
            [a, b, c, d] => sha_ni::compress([a, b, c, d], count),
            _ => panic!("more than {LANES_MAX} lanes"),
        }
        return;
    }
    assert!(lanes.len() <= LANES_MAX, "more than {LANES_MAX} lanes");
    for lane in lanes {
        let (now, later) = lane.blocks.split_at(count);
        compress256(lane.state, now);
        lane.blocks = later;
    }
}

/// The SHA extensions of x86-64 (Intel SDM, volume 2: SHA256RNDS2, SHA256MSG1, SHA256MSG2).
#[cfg(target_arch = "x86_64")]
mod sha_ni {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x, _mm_setzero_si128,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
        _mm_storeu_si128,
    };

    use super::{Block, Lane, State};

    /// The round constants (FIPS 180-4, 4.2.2), four a group.
    #[rustfmt::skip]
    static ROUND_CONSTANTS: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5], [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3], [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc], [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7], [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13], [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3], [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5], [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208], [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    /// Whether this CPU has them. The standard library asks the CPU once and caches the answer.
    pub fn available() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
    }

    /// Advances each lane by `count` blocks.
    ///
    /// # Panics
    /// When a lane has fewer blocks, or the CPU lacks the extensions.
    pub fn compress<const N: usize>(lanes: [&mut Lane<'_>; N], count: usize) {
        assert!(available() && lanes.iter().all(|lane| lane.blocks.len() >= count));
        let mut states = lanes.each_ref().map(|lane| *lane.state);
        let blocks = lanes.each_ref().map(|lane| lane.blocks);
        // SAFETY: the CPU has the features, and every lane has `count` blocks: both were just checked.
        unsafe { rounds(&mut states, blocks, count) };
        for (lane, state) in lanes.into_iter().zip(states) {
            *lane.state = state;
            lane.blocks = &lane.blocks[count..];
        }
    }

    /// # Safety
    /// The CPU has the features named below, and each of `blocks` has `count` of them.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    unsafe fn rounds<const N: usize>(states: &mut [State; N], blocks: [&[Block]; N], count: usize) {
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
                // SAFETY: a block is four quarters of 16 bytes.
                words[lane] = [0, 1, 2, 3]
                    .map(|quarter| _mm_shuffle_epi8(unsafe { _mm_loadu_si128(block.add(quarter)) }, big_endian));
            }
            // The macro unrolls the rounds, so that every index is a constant and all words stay in registers.
            macro_rules! four_rounds {
                ($($group:literal)*) => {$({
                    // SAFETY: a group is 16 bytes.
                    let constants = unsafe { _mm_loadu_si128(ROUND_CONSTANTS[$group].as_ptr().cast()) };
                    let mut input = [zero; N];
                    for lane in 0..N {
                        input[lane] = _mm_add_epi32(words[lane][$group % 4], constants);
                    }
                    for lane in 0..N {
                        cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], input[lane]);
                    }
                    // The words for four groups later overwrite those just used.
                    if $group < 12 {
                        for lane in 0..N {
                            let [a, b, c, d] = [0, 1, 2, 3].map(|next| words[lane][($group + next) % 4]);
                            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4));
                            words[lane][$group % 4] = _mm_sha256msg2_epu32(sum, d);
                        }
                    }
                    for lane in 0..N {
                        abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(input[lane], 0x0e));
                    }
                })*};
            }
            four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks() -> impl Strategy<Value = Vec<Block>> {
        prop::collection::vec(prop::array::uniform32(any::<u8>()), 0..24).prop_map(|halves| {
            halves.chunks_exact(2).map(|pair| pair.concat().try_into().expect("two halves")).collect()
        })
    }

    proptest! {
        #[test]
        fn lanes_do_what_one_stream_alone_does(
            streams in prop::collection::vec((prop::array::uniform8(any::<u32>()), blocks()), 1..=LANES_MAX),
            most in 1usize..8,
        ) {
            let mut states: Vec<State> = streams.iter().map(|(state, _)| *state).collect();
            let inputs = streams.iter().map(|(_, blocks)| &blocks[..]);
            let mut lanes: Vec<Lane> =
                states.iter_mut().zip(inputs).map(|(state, blocks)| Lane { state, blocks }).collect();
            let shortest = streams.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0);
            advance(&mut lanes, most);
            let taken = shortest.min(most);
            for (lane, (_, blocks)) in lanes.iter().zip(&streams) {
                prop_assert_eq!(lane.blocks, &blocks[taken..]);
            }
            for (after, (before, blocks)) in states.iter().zip(&streams) {
                let mut expected = *before;
                compress256(&mut expected, &blocks[..taken]);
                prop_assert_eq!(*after, expected);
            }
        }
    }
}
