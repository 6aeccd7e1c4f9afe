//! Which files' streams stand side by side: every reading thread keeps up to [`LANES_MAX`] of them in the lanes.
//!
//! A file hands in a turn (its stream and the chunks just read) and gets it back when they are taken up. The lanes
//! advance together to the next end of one of them and its place is given to the next in the queue, so that a large
//! file and many small ones keep all of them busy. A turn of several chunks gives its place up after each while others
//! wait: a small file waits for a step of those before it and not for their turns. Nobody is held back to wait for
//! company: what is there is taken up at once, by itself if need be, and whoever comes meanwhile joins in at the next step.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::task::{Poll, Waker};

use tokio::sync::Notify;
use tokio::task::yield_now;

use super::lanes::{BLOCK_BYTES, LANES_MAX, Lane, advance};
use super::sha256::Stream;

/// Chunks of one file in a turn at most.
pub const CHUNKS_MAX: usize = 4;

/// Blocks between two looks at the queue (64 KB): what comes in meanwhile waits some 30 us at most for a free lane.
const STEP_BLOCKS: usize = 1024;

/// What one file has for the lanes: its stream, and the chunks that come next. Used again, chunk by chunk.
pub struct Turn<B> {
    stream: Stream,
    chunks: [Option<(B, usize)>; CHUNKS_MAX],
    /// The content ends with these chunks.
    last: bool,
    /// The chunk under way; beyond them the padding.
    segment: usize,
    /// Of the segment under way, what is still to be taken up.
    left: Range<usize>,
}

impl<B> Default for Turn<B> {
    fn default() -> Self {
        Self { stream: Stream::default(), chunks: [const { None }; CHUNKS_MAX], last: false, segment: 0, left: 0..0 }
    }
}

impl<B: Deref<Target = [u8]>> Turn<B> {
    /// Adds the first `length` bytes of a buffer.
    ///
    /// # Panics
    /// When there are more than [`CHUNKS_MAX`].
    pub fn add(&mut self, buffer: B, length: usize) {
        let place = self.chunks.iter_mut().find(|place| place.is_none());
        *place.expect("a turn has no more than CHUNKS_MAX chunks") = Some((buffer, length));
    }

    /// Begins another content with an empty turn.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Says that the content ends here.
    pub fn end(&mut self) {
        self.last = true;
    }

    /// Hands the buffers back.
    pub fn buffers(&mut self) -> impl Iterator<Item = B> {
        self.chunks.iter_mut().filter_map(|chunk| chunk.take().map(|(buffer, _)| buffer))
    }

    /// The digest, after the turn in which the content ended.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.stream.digest()
    }

    /// To the first segment with a whole block.
    fn begin(&mut self) -> bool {
        self.segment = 0;
        self.left = self.enter();
        self.settle()
    }

    /// To the next segment with a whole block, when the one under way has none; `false` at the end.
    fn settle(&mut self) -> bool {
        while self.left.is_empty() {
            if self.segment == CHUNKS_MAX {
                return false;
            }
            self.segment += 1;
            self.left = self.enter();
        }
        true
    }

    fn enter(&mut self) -> Range<usize> {
        match self.chunks.get(self.segment) {
            Some(Some((buffer, length))) => self.stream.enter(&buffer[..*length]),
            Some(None) => 0..0,
            None if self.last => 0..self.stream.pad() * BLOCK_BYTES,
            None => 0..0,
        }
    }

    fn lane(&mut self) -> Lane<'_> {
        let bytes = match self.chunks.get(self.segment) {
            Some(Some((buffer, _))) => &buffer[..],
            _ => self.stream.rest.as_flattened(),
        };
        Lane { state: &mut self.stream.state, blocks: bytes[self.left.clone()].as_chunks().0 }
    }
}

/// Takes the turns (at most [`LANES_MAX`]) one step further: to the end of the shortest segment, or by
/// [`STEP_BLOCKS`].
fn step<B: Deref<Target = [u8]>>(turns: &mut [Seated<B>]) {
    let blocks = turns.iter().map(|seated| seated.turn.left.len() / BLOCK_BYTES).min().unwrap_or(0).min(STEP_BLOCKS);
    match turns {
        [a] => advance(&mut [a.turn.lane()], blocks),
        [a, b] => advance(&mut [a.turn.lane(), b.turn.lane()], blocks),
        [a, b, c] => advance(&mut [a.turn.lane(), b.turn.lane(), c.turn.lane()], blocks),
        [a, b, c, d] => advance(&mut [a.turn.lane(), b.turn.lane(), c.turn.lane(), d.turn.lane()], blocks),
        _ => {}
    }
    for seated in turns {
        seated.turn.left.start += blocks * BLOCK_BYTES;
    }
}

/// A reading thread's lanes, and the queue before them.
pub struct Scheduler<B> {
    table: RefCell<Table<B>>,
    called: Notify,
}

struct Table<B> {
    /// Turns that have not got a lane yet.
    queue: VecDeque<Seated<B>>,
    /// What each waiting file looks for, by its number.
    places: Vec<Place<B>>,
    free: Vec<usize>,
}

struct Seated<B> {
    turn: Box<Turn<B>>,
    place: usize,
}

struct Place<B> {
    done: Option<Box<Turn<B>>>,
    waker: Option<Waker>,
}

impl<B> Default for Scheduler<B> {
    fn default() -> Self {
        let table = Table { queue: VecDeque::new(), places: Vec::new(), free: Vec::new() };
        Self { table: RefCell::new(table), called: Notify::new() }
    }
}

impl<B: Deref<Target = [u8]>> Scheduler<B> {
    /// Has a turn taken up. Not to be dropped before it is back: its place would never be free again.
    pub async fn hash(&self, mut turn: Box<Turn<B>>) -> Box<Turn<B>> {
        if !turn.begin() {
            return turn; // less than a block, and more to come
        }
        let place = self.table.borrow_mut().seat(turn);
        self.called.notify_one();
        poll_fn(|context| {
            let mut table = self.table.borrow_mut();
            match table.places[place].done.take() {
                Some(turn) => {
                    table.free.push(place);
                    Poll::Ready(turn)
                }
                None => {
                    table.places[place].waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Works the lanes, for ever. It runs as a task of its own: called by the first turn of a round it comes after
    /// all tasks that are ready to hand in theirs.
    pub async fn run(&self) {
        let mut lanes: Vec<Seated<B>> = Vec::with_capacity(LANES_MAX);
        loop {
            let all_seated = {
                let mut table = self.table.borrow_mut();
                while lanes.len() < LANES_MAX
                    && let Some(next) = table.queue.pop_front()
                {
                    lanes.push(next);
                }
                table.queue.is_empty()
            };
            if lanes.is_empty() {
                self.called.notified().await;
                continue;
            }
            step(&mut lanes);
            for at in (0..lanes.len()).rev() {
                let segment = lanes[at].turn.segment;
                if !lanes[at].turn.settle() {
                    self.table.borrow_mut().give_back(lanes.swap_remove(at));
                } else if lanes[at].turn.segment > segment && !all_seated {
                    self.table.borrow_mut().queue.push_back(lanes.swap_remove(at));
                }
            }
            if all_seated && !lanes.is_empty() {
                yield_now().await; // to those who have got theirs back, and to the ring
            }
        }
    }
}

impl<B> Table<B> {
    fn seat(&mut self, turn: Box<Turn<B>>) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { done: None, waker: None });
            self.places.len() - 1
        });
        self.queue.push_back(Seated { turn, place });
        place
    }

    fn give_back(&mut self, seated: Seated<B>) {
        let place = &mut self.places[seated.place];
        place.done = Some(seated.turn);
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use futures_util::future::join_all;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    /// Hashes contents side by side, each in chunks of its own lengths.
    fn hash_all(contents: &[(Vec<u8>, Vec<usize>)]) -> Vec<[u8; 32]> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let scheduler = Scheduler::default();
        let hash_one = async |(content, cuts): &(Vec<u8>, Vec<usize>)| {
            let mut turn = Box::new(Turn::default());
            let mut rest = &content[..];
            let mut chunks = 0;
            for &cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                // Longer than what is valid of it, as a buffer is.
                turn.add([chunk, b"more"].concat(), chunk.len());
                rest = after;
                chunks += 1;
                if chunks % CHUNKS_MAX == 0 {
                    turn = scheduler.hash(turn).await;
                    assert_eq!(turn.buffers().count(), CHUNKS_MAX);
                }
            }
            turn.end();
            scheduler.hash(turn).await.digest()
        };
        runtime.block_on(async {
            tokio::select! {
                digests = join_all(contents.iter().map(hash_one)) => digests,
                () = scheduler.run() => unreachable!("it works for ever"),
            }
        })
    }

    proptest! {
        #[test]
        fn files_side_by_side_get_their_own_digests(
            contents in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..3000), prop::collection::vec(1usize..700, 1..6)),
                0..12,
            ),
        ) {
            let expected: Vec<[u8; 32]> = contents.iter().map(|(content, _)| Sha256::digest(content).into()).collect();
            prop_assert_eq!(hash_all(&contents), expected);
        }
    }

    #[test]
    fn every_length_around_the_blocks_is_padded_right() {
        let contents: Vec<_> = (0..260).map(|length| (vec![b'x'; length], vec![64])).collect();
        let expected: Vec<[u8; 32]> = contents.iter().map(|(content, _)| Sha256::digest(content).into()).collect();
        assert_eq!(hash_all(&contents), expected);
    }

    #[test]
    fn long_and_short_share_the_lanes() {
        let lengths = [3_000_000, 10, 70_000, 0, 500_000, 64, 63, 65_536, 1];
        let contents: Vec<_> = lengths.iter().map(|&length| (vec![7; length], vec![65_536])).collect();
        let expected: Vec<[u8; 32]> = contents.iter().map(|(content, _)| Sha256::digest(content).into()).collect();
        assert_eq!(hash_all(&contents), expected);
    }

    #[test]
    fn a_small_file_waits_for_a_step_of_the_large_ones_and_not_for_their_turns() {
        const CHUNK: usize = STEP_BLOCKS * BLOCK_BYTES;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let scheduler = Rc::new(Scheduler::default());
        let ended = Rc::new(RefCell::new(Vec::new()));
        let file = |name: &'static str, chunks: usize, length: usize| {
            let (scheduler, ended) = (Rc::clone(&scheduler), Rc::clone(&ended));
            // A task each: those whose turns are over go on in that order.
            tokio::task::spawn_local(async move {
                let mut turn = Box::new(Turn::default());
                (0..chunks).for_each(|_| turn.add(vec![0; length], length));
                turn.end();
                scheduler.hash(turn).await;
                ended.borrow_mut().push(name);
            })
        };
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut files: Vec<_> = (0..2 * LANES_MAX).map(|_| file("large", CHUNKS_MAX, CHUNK)).collect();
            files.push(file("small", 1, 100));
            let hashing = Rc::clone(&scheduler);
            let hashing = tokio::task::spawn_local(async move { hashing.run().await });
            join_all(files).await;
            hashing.abort();
        });
        assert_eq!(ended.borrow()[0], "small", "{:?}", ended.borrow());
    }

    #[test]
    fn examples_of_the_standard() {
        // NIST's SHA-256 examples: one block, two blocks; and its long message of a million letters.
        let cases = [
            (b"abc".to_vec(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq".to_vec(),
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (vec![b'a'; 1_000_000], "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        let contents: Vec<_> = cases.iter().map(|(content, _)| (content.clone(), vec![4096])).collect();
        for (digest, (_, expected)) in hash_all(&contents).iter().zip(cases) {
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected);
        }
    }
}
