//! The operations of [`divided`](super::divided) in plain Rust: what the tests run on any CPU, and under Miri.

use super::block::{Block, State};
use super::divided::{CONSTANTS, Message, STREAMS, divided, each_of_32};

/// (a, b, e, f) or (c, d, g, h) of each stream.
type Half = [[u32; 4]; STREAMS];
/// Two words of each stream.
type Pair = [u32; 2 * STREAMS];

const ZERO: Pair = [0; 2 * STREAMS];

divided! {}

fn split(states: &[State; STREAMS]) -> (Half, Half) {
    (states.map(|[a, b, _, _, e, f, _, _]| [a, b, e, f]), states.map(|[_, _, c, d, _, _, g, h]| [c, d, g, h]))
}

fn join(states: &mut [State; STREAMS], abef: Half, cdgh: Half) {
    for ((state, [a, b, e, f]), [c, d, g, h]) in states.iter_mut().zip(abef).zip(cdgh) {
        *state = [a, b, c, d, e, f, g, h];
    }
}

fn add(one: Half, other: Half) -> Half {
    std::array::from_fn(|lane| std::array::from_fn(|word| one[lane][word].wrapping_add(other[lane][word])))
}

/// FIPS 180-4, 6.2.2, step 3, twice. After two rounds a half has become the other one.
fn two_rounds<const STEP: usize>(abef: &mut Half, cdgh: &mut Half, message: &Message) {
    let (made, from) = if STEP.is_multiple_of(2) { (cdgh, abef) } else { (abef, cdgh) };
    for lane in 0..STREAMS {
        let ([mut a, mut b, mut e, mut f], [mut c, mut d, mut g, mut h]) = (from[lane], made[lane]);
        for word in &message[STEP].0[2 * lane..2 * lane + 2] {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = (e & f) ^ (!e & g);
            let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(*word);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let majority = (a & b) ^ (a & c) ^ (b & c);
            (h, g, f, e) = (g, f, e, d.wrapping_add(t1));
            (d, c, b, a) = (c, b, a, t1.wrapping_add(s0).wrapping_add(majority));
        }
        made[lane] = [a, b, e, f];
    }
}

fn load<const QUARTER: usize>(pairs: &mut [Pair; 8], blocks: [&Block; STREAMS], to: &mut Message) {
    for row in [2 * QUARTER, 2 * QUARTER + 1] {
        for (two, block) in pairs[row].as_chunks_mut::<2>().0.iter_mut().zip(blocks) {
            let words = block[8 * row..8 * row + 8].as_chunks().0;
            *two = [u32::from_be_bytes(words[0]), u32::from_be_bytes(words[1])];
        }
        to[row].0 = sum(pairs[row], CONSTANTS[row].0);
    }
}

fn sum_of(pair: Pair, other: Pair) -> Pair {
    sum(pair, other.map(|word| word.rotate_right(7) ^ word.rotate_right(18) ^ (word >> 3)))
}

fn expand<const STEP: usize>(pairs: &mut [Pair; 8], before: &mut Pair, to: &mut Message) {
    let next = sum_of(pairs[(STEP + 5) % 8], pairs[(STEP + 1) % 8]);
    let inner = std::array::from_fn(|at| if at % 2 == 0 { before[at + 1] } else { next[at - 1] });
    *before = next;
    let s1 = pairs[(STEP + 7) % 8].map(|word| word.rotate_right(17) ^ word.rotate_right(19) ^ (word >> 10));
    pairs[STEP % 8] = sum(sum(pairs[STEP % 8], inner), s1);
    to[STEP].0 = sum(pairs[STEP % 8], CONSTANTS[STEP].0);
}

fn sum(one: Pair, other: Pair) -> Pair {
    std::array::from_fn(|at| one[at].wrapping_add(other[at]))
}
