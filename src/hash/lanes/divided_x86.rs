//! The operations of [`divided`](super::divided) in assembly, because their order is the speed.
//!
//! Where the compiler orders the same instructions, it first expands whole messages and then makes all rounds, or spills
//! the messages, and a change elsewhere moves the rate between 3.7 and 5.0 GB/s on a Zen 4; in this order it is 5.3. The
//! compiler keeps blocks of assembly in their order and chooses the registers.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_shuffle_epi32,
    _mm_storeu_si128, _mm256_add_epi32, _mm256_ror_epi32, _mm256_srli_epi32, _mm256_xor_si256,
};

use super::block::{Block, Lane, State};
use super::divided::{CONSTANTS, Message, Row, STREAMS, divided, each_of_32};

type Half = [__m128i; STREAMS];
type Pair = __m256i;

// SAFETY: eight words that are zero are a vector.
const ZERO: Pair = unsafe { std::mem::zeroed() };

/// The order of the bytes that makes little-endian words of big-endian ones, in each half of a register.
static BIG_ENDIAN: Row =
    Row([0x0001_0203, 0x0405_0607, 0x0809_0a0b, 0x0c0d_0e0f, 0x0001_0203, 0x0405_0607, 0x0809_0a0b, 0x0c0d_0e0f]);

/// Whether this CPU has what the kernel needs (Zen 4, Ice Lake, and newer). The standard library asks the CPU once.
pub fn available() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi2")
}

/// Advances each lane by `count` blocks.
///
/// # Panics
/// When a lane has fewer blocks, or the CPU lacks the extensions.
pub fn compress(lanes: [&mut Lane<'_>; STREAMS], count: usize) {
    assert!(available() && lanes.iter().all(|lane| lane.blocks.len() >= count));
    let mut states = lanes.each_ref().map(|lane| *lane.state);
    // SAFETY: the CPU has the features, as was just checked.
    unsafe { rounds(&mut states, lanes.each_ref().map(|lane| lane.blocks), count) };
    for (lane, state) in lanes.into_iter().zip(states) {
        *lane.state = state;
        lane.blocks = &lane.blocks[count..];
    }
}

divided! { #[target_feature(enable = "sha,avx512f,avx512vl,avx512bw,avx512vbmi2")] }

/// The halves (a, b, e, f) and (c, d, g, h) of each chaining value.
#[inline]
#[target_feature(enable = "sse4.1")]
fn split(states: &[State; STREAMS]) -> (Half, Half) {
    let halves = states.each_ref().map(|state| {
        let half = state.as_ptr().cast::<__m128i>();
        // SAFETY: a state is two halves of 16 bytes; loadu asks for no alignment.
        let (abcd, efgh) = unsafe { (_mm_loadu_si128(half), _mm_loadu_si128(half.add(1))) };
        let (badc, hgfe) = (_mm_shuffle_epi32(abcd, 0xb1), _mm_shuffle_epi32(efgh, 0x1b));
        (_mm_alignr_epi8(badc, hgfe, 8), _mm_blend_epi16(hgfe, badc, 0xf0))
    });
    (halves.map(|(abef, _)| abef), halves.map(|(_, cdgh)| cdgh))
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn join(states: &mut [State; STREAMS], abef: Half, cdgh: Half) {
    for (lane, state) in states.iter_mut().enumerate() {
        let (feba, dchg) = (_mm_shuffle_epi32(abef[lane], 0x1b), _mm_shuffle_epi32(cdgh[lane], 0xb1));
        let half = state.as_mut_ptr().cast::<__m128i>();
        // SAFETY: as for the loads above.
        unsafe {
            _mm_storeu_si128(half, _mm_blend_epi16(feba, dchg, 0xf0));
            _mm_storeu_si128(half.add(1), _mm_alignr_epi8(dchg, feba, 8));
        }
    }
}

#[inline]
#[target_feature(enable = "sse2")]
fn add(mut one: Half, other: Half) -> Half {
    for lane in 0..STREAMS {
        one[lane] = _mm_add_epi32(one[lane], other[lane]);
    }
    one
}

/// Two rounds of each stream, whose words `row` holds. After two rounds a half has become the other one.
#[inline]
#[target_feature(enable = "sha,avx512f,avx512vl")]
fn two_rounds<const STEP: usize>(abef: &mut Half, cdgh: &mut Half, message: &Message) {
    let (made, from) = if STEP.is_multiple_of(2) { (cdgh, abef) } else { (abef, cdgh) };
    // SAFETY: the CPU has the features, and four times eight bytes are a row.
    unsafe {
        asm!(
            "vmovq xmm0, qword ptr [{message} + {row}]",
            "sha256rnds2 {a}, {w}",
            "vmovq xmm0, qword ptr [{message} + {row} + 8]",
            "sha256rnds2 {b}, {x}",
            "vmovq xmm0, qword ptr [{message} + {row} + 16]",
            "sha256rnds2 {c}, {y}",
            "vmovq xmm0, qword ptr [{message} + {row} + 24]",
            "sha256rnds2 {d}, {z}",
            message = in(reg) message, row = const STEP * size_of::<Row>(),
            a = inout(xmm_reg) made[0], b = inout(xmm_reg) made[1], c = inout(xmm_reg) made[2], d = inout(xmm_reg) made[3],
            w = in(xmm_reg) from[0], x = in(xmm_reg) from[1], y = in(xmm_reg) from[2], z = in(xmm_reg) from[3],
            out("xmm0") _,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// Loads the words `4 * QUARTER` to `4 * QUARTER + 3` of a block of each stream, and stores them with their constants.
#[expect(unused_assignments, reason = "scratch registers")]
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw")]
fn load<const QUARTER: usize>(pairs: &mut [Pair; 8], blocks: [&Block; STREAMS], to: &mut Message) {
    // As in `expand`.
    let mut spare = [ZERO; 2];
    // SAFETY: the CPU has the features; a block is four quarters of 16 bytes; two rows are stored from `2 * QUARTER` on.
    unsafe {
        asm!(
            "vbroadcasti32x4 {low:y}, [{a} + {bytes}]",
            "vbroadcasti32x4 {high:y}, [{b} + {bytes}]",
            "vinserti32x4 {low:y}, {low:y}, [{c} + {bytes}], 1",
            "vinserti32x4 {high:y}, {high:y}, [{d} + {bytes}], 1",
            "vpshufb {one:y}, {low:y}, [rip + {swap}]",
            "vpshufb {other:y}, {high:y}, [rip + {swap}]",
            "vpunpcklqdq {low:y}, {one:y}, {other:y}",
            "vpunpckhqdq {high:y}, {one:y}, {other:y}",
            "vpaddd {one:y}, {low:y}, [rip + {constants} + {rows}]",
            "vpaddd {other:y}, {high:y}, [rip + {constants} + {rows} + 32]",
            "vmovdqa32 [{to} + {rows}], {one:y}",
            "vmovdqa32 [{to} + {rows} + 32], {other:y}",
            a = in(reg) blocks[0], b = in(reg) blocks[1], c = in(reg) blocks[2], d = in(reg) blocks[3],
            swap = sym BIG_ENDIAN, constants = sym CONSTANTS, to = in(reg) to,
            bytes = const 16 * QUARTER, rows = const 2 * QUARTER * size_of::<Row>(),
            low = out(zmm_reg) pairs[2 * QUARTER], high = out(zmm_reg) pairs[2 * QUARTER + 1],
            one = out(zmm_reg) spare[0], other = out(zmm_reg) spare[1],
            options(nostack, preserves_flags),
        );
    }
}

/// `pair`, and s0 of `other`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn sum_of(pair: Pair, other: Pair) -> Pair {
    let rotated = _mm256_xor_si256(_mm256_ror_epi32::<7>(other), _mm256_ror_epi32::<18>(other));
    _mm256_add_epi32(pair, _mm256_xor_si256(rotated, _mm256_srli_epi32::<3>(other)))
}

/// Makes two more words of each stream from the sixteen before, w(t) = s1(w(t-2)) + w(t-7) + s0(w(t-15)) + w(t-16), and
/// stores them with their constants.
///
/// The words t-7 and t-15 do not lie as pairs. So their sum is made for the pairs that they are parts of, once for each
/// pair: `sum` brings that of the pair before and takes this one's; their inner halves are the sum that is wanted.
/// What waits for the words just made (s1) comes last, because that is the chain that everything else waits for.
#[expect(unused_assignments, reason = "scratch registers")]
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512vbmi2")]
fn expand<const STEP: usize>(pairs: &mut [Pair; 8], sum: &mut Pair, to: &mut Message) {
    let next: Pair;
    // The scratch registers have a type, because without one the compiler takes some that are no vector registers.
    let mut spare = [ZERO; 3];
    // SAFETY: the CPU has the features, and a row is 32 bytes and aligned to as many.
    unsafe {
        asm!(
            "vprord {next:y}, {first:y}, 7",
            "vprord {x:y}, {first:y}, 18",
            "vpsrld {y:y}, {first:y}, 3",
            "vpternlogd {next:y}, {x:y}, {y:y}, 0x96",
            "vpaddd {next:y}, {next:y}, {fifth:y}",
            "vpshrdq {sum:y}, {sum:y}, {next:y}, 32",
            "vpaddd {pair:y}, {pair:y}, {sum:y}",
            "vprord {x:y}, {last:y}, 17",
            "vprord {y:y}, {last:y}, 19",
            "vpsrld {z:y}, {last:y}, 10",
            "vpternlogd {x:y}, {y:y}, {z:y}, 0x96",
            "vpaddd {pair:y}, {pair:y}, {x:y}",
            "vpaddd {y:y}, {pair:y}, [rip + {constants} + {row}]",
            "vmovdqa32 [{to} + {row}], {y:y}",
            pair = inout(zmm_reg) pairs[STEP % 8], first = in(zmm_reg) pairs[(STEP + 1) % 8],
            fifth = in(zmm_reg) pairs[(STEP + 5) % 8], last = in(zmm_reg) pairs[(STEP + 7) % 8],
            sum = inout(zmm_reg) *sum => _, next = out(zmm_reg) next,
            x = out(zmm_reg) spare[0], y = out(zmm_reg) spare[1], z = out(zmm_reg) spare[2],
            constants = sym CONSTANTS, to = in(reg) to, row = const STEP * size_of::<Row>(),
            options(nostack, preserves_flags),
        );
    }
    *sum = next;
}
