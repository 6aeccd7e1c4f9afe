use std::collections::VecDeque;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::divided::STREAMS;
use super::*;

/// Under Miri a block takes milliseconds.
fn few(cases: u32) -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 4 } else { cases }, failure_persistence: None, ..ProptestConfig::default() }
}

fn blocks(most: usize) -> impl Strategy<Value = Vec<Block>> {
    let block = prop::collection::vec(any::<u8>(), BLOCK_BYTES).prop_map(|block| block.try_into().expect("64 bytes"));
    prop::collection::vec(block, 0..most)
}

fn state() -> impl Strategy<Value = State> {
    prop::array::uniform8(any::<u32>())
}

/// The kernels of this CPU. The others are named: what was not tested is not to look tested.
fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| {
        let available = kernel.available();
        if !available {
            eprintln!("skipped: this CPU lacks what {kernel:?} needs");
        }
        available
    })
}

/// A content with its padding (FIPS 180-4, 5.1.1).
fn padded(content: &[u8]) -> Vec<Block> {
    let mut bytes = content.to_vec();
    bytes.push(0x80);
    bytes.resize((content.len() + 1 + size_of::<u64>()).next_multiple_of(BLOCK_BYTES) - size_of::<u64>(), 0);
    bytes.extend((8 * content.len() as u64).to_be_bytes());
    bytes.as_chunks().0.to_vec()
}

fn digest(state: &State) -> Vec<u8> {
    state.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Hashes contents in up to `width` lanes. A content that has ended leaves its lane to the next; `cuts` are, in turn, the
/// blocks of a call at most, and the blocks of a lane that a call sees at most.
fn hash_all(kernel: Kernel, contents: &[Vec<u8>], width: usize, cuts: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let padded: Vec<Vec<Block>> = contents.iter().map(|content| padded(content)).collect();
    let mut states = vec![INITIAL; contents.len()];
    let mut rest: Vec<&[Block]> = padded.iter().map(|blocks| &blocks[..]).collect();
    let mut waiting: VecDeque<usize> = (0..contents.len()).collect();
    let mut running: Vec<usize> = Vec::new();
    for (number, &(most, chunk)) in cuts.iter().cycle().enumerate() {
        running.retain(|&at| !rest[at].is_empty());
        while running.len() < width
            && let Some(next) = waiting.pop_front()
        {
            running.push(next);
        }
        if running.is_empty() {
            break;
        }
        // Every content has each of the lanes in turn.
        let first = number % running.len();
        running.rotate_left(first);
        let mut of_lanes: Vec<State> = running.iter().map(|&at| states[at]).collect();
        let seen: Vec<&[Block]> = running.iter().map(|&at| &rest[at][..chunk.min(rest[at].len())]).collect();
        let mut lanes: Vec<Lane> =
            of_lanes.iter_mut().zip(&seen).map(|(state, &blocks)| Lane { state, blocks }).collect();
        kernel.advance(&mut lanes, most);
        let taken = seen.iter().map(|blocks| blocks.len()).min().unwrap_or(0).min(most);
        for (lane, blocks) in lanes.iter().zip(&seen) {
            assert_eq!(lane.blocks, &blocks[taken..], "{kernel:?}");
        }
        for (&at, state) in running.iter().zip(of_lanes) {
            states[at] = state;
            rest[at] = &rest[at][taken..];
        }
    }
    states.iter().map(digest).collect()
}

fn lengths_around_blocks() -> impl Strategy<Value = usize> {
    let around = (0usize..40, 0usize..5).prop_map(|(blocks, more)| (BLOCK_BYTES * blocks + more).saturating_sub(2));
    prop_oneof![0usize..200, around, 0usize..6000]
}

fn contents() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let content = lengths_around_blocks().prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
    prop::collection::vec(content, 1..3 * LANES_MAX)
}

proptest! {
    #![proptest_config(few(256))]

    #[test]
    fn every_kernel_makes_the_digests_of_sha2(
        contents in contents(),
        width in 1..=LANES_MAX,
        cuts in prop::collection::vec((1usize..40, 1usize..40), 1..6),
    ) {
        let expected: Vec<Vec<u8>> = contents.iter().map(|content| Sha256::digest(content).to_vec()).collect();
        for kernel in kernels() {
            prop_assert_eq!(&hash_all(kernel, &contents, width, &cuts), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn lanes_do_what_one_stream_alone_does(
        streams in prop::collection::vec((state(), blocks(24)), 1..=LANES_MAX),
        most in 1usize..30,
    ) {
        let taken = streams.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0).min(most);
        let mut expected: Vec<State> = streams.iter().map(|(state, _)| *state).collect();
        for (state, (_, blocks)) in expected.iter_mut().zip(&streams) {
            compress256(state, &blocks[..taken]);
        }
        for kernel in kernels() {
            let mut states: Vec<State> = streams.iter().map(|(state, _)| *state).collect();
            let inputs = streams.iter().map(|(_, blocks)| &blocks[..]);
            let mut lanes: Vec<Lane> =
                states.iter_mut().zip(inputs).map(|(state, blocks)| Lane { state, blocks }).collect();
            kernel.advance(&mut lanes, most);
            for (lane, (_, blocks)) in lanes.iter().zip(&streams) {
                prop_assert_eq!(lane.blocks, &blocks[taken..]);
            }
            prop_assert_eq!(&states, &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn the_portable_twin_does_the_same(
        states in prop::array::uniform4(state()),
        inputs in prop::array::uniform4(prop::collection::vec(prop::collection::vec(any::<u8>(), BLOCK_BYTES), 12)),
        count in 1usize..=12,
    ) {
        let inputs = inputs.map(|blocks| blocks.concat().as_chunks::<BLOCK_BYTES>().0.to_vec());
        let (mut expected, mut made) = (states, states);
        for (state, blocks) in expected.iter_mut().zip(&inputs) {
            compress256(state, &blocks[..count]);
        }
        divided_portable::rounds(&mut made, inputs.each_ref().map(|blocks| &blocks[..]), count);
        prop_assert_eq!(made, expected);
    }
}

#[test]
fn every_number_of_blocks_and_lanes() {
    let most = if cfg!(miri) { 3 } else { 40 };
    let bytes: Vec<u8> = (0..LANES_MAX * most * BLOCK_BYTES).map(|at| (at * at / 7) as u8).collect();
    let inputs: Vec<&[Block]> = bytes.chunks(most * BLOCK_BYTES).map(|input| input.as_chunks().0).collect();
    for kernel in kernels() {
        for width in 0..=LANES_MAX {
            for count in 0..=most {
                let (mut states, mut expected) = ([INITIAL; LANES_MAX], [INITIAL; LANES_MAX]);
                let mut lanes: Vec<Lane> = states[..width]
                    .iter_mut()
                    .zip(&inputs)
                    .map(|(state, blocks)| Lane { state, blocks: &blocks[..count] })
                    .collect();
                kernel.advance(&mut lanes, usize::MAX);
                for (state, blocks) in expected[..width].iter_mut().zip(&inputs) {
                    compress256(state, &blocks[..count]);
                }
                assert_eq!(states, expected, "{kernel:?}, {width} lanes of {count} blocks");
            }
        }
    }
}

#[test]
fn the_best_kernel_of_this_cpu_is_one_that_it_can_run() {
    assert!(Kernel::ALL.contains(&Kernel::Sha2) && Kernel::Sha2.available());
    assert_eq!(STREAMS, LANES_MAX, "the widest kernel is the limit");
    let (mut one, mut other) = (INITIAL, INITIAL);
    let block = [[7; BLOCK_BYTES]; 5];
    advance(&mut [Lane { state: &mut one, blocks: &block }], usize::MAX);
    Kernel::Sha2.advance(&mut [Lane { state: &mut other, blocks: &block }], usize::MAX);
    assert_eq!(one, other);
}

#[test]
#[should_panic(expected = "more than 4 lanes")]
fn more_lanes_than_there_are_is_a_mistake_of_the_caller() {
    let mut states = [INITIAL; LANES_MAX + 1];
    let mut lanes: Vec<Lane> = states.iter_mut().map(|state| Lane { state, blocks: &[[0; BLOCK_BYTES]] }).collect();
    advance(&mut lanes, 1);
}
