//! Four streams, the work divided by kind: vector units expand the messages, the SHA unit makes only the rounds.
//!
//! While the rounds of one block run, the message of the next one is expanded. A register holds two words of each of the
//! four streams, which is what one `sha256rnds2` takes. The text of the kernel is the macro below, and it is safe code;
//! the four operations that it is made of come from the module that invokes it: `divided_x86` has them in assembly,
//! `divided_portable` in plain Rust, for the tests.

use super::block::ROUND_CONSTANTS;

/// Streams of this kernel.
pub(super) const STREAMS: usize = 4;

/// Two words of each stream.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Row(pub [u32; 2 * STREAMS]);

/// The expanded message of a block of each stream (FIPS 180-4, 6.2.2, step 1), constants added: 64 words.
pub(super) type Message = [Row; 32];

/// The round constants, once for each stream.
pub(super) static CONSTANTS: Message = {
    let mut rows = [Row([0; 2 * STREAMS]); 32];
    let mut at = 0;
    while at < 32 * 2 * STREAMS {
        let (row, word) = (at / (2 * STREAMS), at % (2 * STREAMS));
        rows[row].0[word] = ROUND_CONSTANTS[2 * row + word % 2];
        at += 1;
    }
    rows
};

/// Defines `rounds`, which advances four streams by `count` blocks each. The invoking module has to have:
/// - `Half` and `Pair`: half a chaining value; two words of each stream. `ZERO` is the latter's zero.
/// - `split`, `join`: from a chaining value to its halves as the SHA unit takes them, and back. `add` adds halves.
/// - `two_rounds`: two rounds of each stream.
/// - `load`: the words 4n to 4n + 3 of a block of each stream, stored with their constants, too.
/// - `sum_of`: a pair, and s0 (FIPS 180-4, 4.1.2) of another.
/// - `expand`: the next two words of each stream (see there).
macro_rules! divided {
    ($(#[$feature:meta])*) => {
        /// Advances four streams by `count` blocks each.
        ///
        /// # Panics
        /// When one has fewer.
        $(#[$feature])*
        pub(super) fn rounds(states: &mut [State; STREAMS], blocks: [&[Block]; STREAMS], count: usize) {
            // Behind the last block its words are loaded again and not used.
            let at = |number: usize| blocks.map(|blocks| &blocks[number.min(count - 1)]);
            let (mut abef, mut cdgh) = split(states);
            let mut messages = [CONSTANTS; 2];
            let mut pairs = [ZERO; 8];
            let [now, next] = &mut messages;
            load_all(&mut pairs, at(0), now);
            let mut sum = sum_of(pairs[4], pairs[0]);
            each_of_32!(STEP => if STEP >= 8 { expand::<STEP>(&mut pairs, &mut sum, now) });
            load_all(&mut pairs, at(1), next);
            for number in 0..count {
                let before = (abef, cdgh);
                let after = at(number + 2);
                let [even, odd] = &mut messages;
                let (now, next) = if number % 2 == 0 { (even, odd) } else { (odd, even) };
                sum = sum_of(pairs[4], pairs[0]);
                each_of_32!(STEP => {
                    two_rounds::<STEP>(&mut abef, &mut cdgh, now);
                    if STEP >= 28 {
                        load::<{ STEP % 4 }>(&mut pairs, after, now);
                    } else if STEP % 7 < 6 {
                        expand::<{ (8 + STEP - STEP / 7) % 32 }>(&mut pairs, &mut sum, next);
                    }
                });
                (abef, cdgh) = (add(abef, before.0), add(cdgh, before.1));
            }
            join(states, abef, cdgh);
        }

        $(#[$feature])*
        #[inline]
        fn load_all(pairs: &mut [Pair; 8], blocks: [&Block; STREAMS], to: &mut Message) {
            load::<0>(pairs, blocks, to);
            load::<1>(pairs, blocks, to);
            load::<2>(pairs, blocks, to);
            load::<3>(pairs, blocks, to);
        }
    };
}

/// The same for each row of a message, its number a constant, so that it names registers.
macro_rules! each_of_32 {
    ($step:ident => $what:expr) => {
        each_of_32!(@ $step, $what, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@ $step:ident, $what:expr, $($at:literal)*) => {$({
        const $step: usize = $at;
        $what;
    })*};
}

pub(super) use {divided, each_of_32};
