//! The order in which SHA-256 streams advance: each reading thread keeps up to [`LANES_MAX`] of them in its lanes.
//!
//! A file enqueues a request (its stream and the chunks just read) and gets it back once they are hashed. The lanes
//! advance together until one of them reaches the end of its segment, and a request that is done frees its lane for the
//! next in the queue, so that a large file and many small ones keep all lanes busy. A request of several chunks leaves
//! its lane after each of them while others wait, so that a small file waits for one step of the requests before it and
//! not for all their chunks. No request waits for others to fill the lanes: those that are there are hashed at once, a
//! single one alone if need be, and later ones join at the next step.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::task::{Poll, Waker};

use tokio::sync::Notify;
use tokio::task::yield_now;

use super::lanes::{BLOCK_BYTES, LANES_MAX, Lane, advance};
use super::sha256::Stream;

/// Chunks of one file in a request at most.
pub const CHUNKS_MAX: usize = 4;

/// Blocks between two looks at the queue (64 KB): a request waits some 30 us at most for a lane that is free.
const STEP_BLOCKS: usize = 1024;

/// A file's stream and its next chunks, to be hashed. One request is used again for each next few chunks.
pub struct Request<B> {
    stream: Stream,
    chunks: [Option<(B, usize)>; CHUNKS_MAX],
    /// The content ends with these chunks.
    last: bool,
    /// The number of the chunk being hashed; [`CHUNKS_MAX`] is the padding.
    segment: usize,
    /// The bytes of that segment that are not hashed yet.
    left: Range<usize>,
}

impl<B> Default for Request<B> {
    fn default() -> Self {
        Self { stream: Stream::default(), chunks: [const { None }; CHUNKS_MAX], last: false, segment: 0, left: 0..0 }
    }
}

impl<B: Deref<Target = [u8]>> Request<B> {
    /// Adds the first `length` bytes of a buffer.
    ///
    /// # Panics
    /// When there are more than [`CHUNKS_MAX`].
    pub fn add(&mut self, buffer: B, length: usize) {
        let free = self.chunks.iter_mut().find(|chunk| chunk.is_none());
        *free.expect("a request has no more than CHUNKS_MAX chunks") = Some((buffer, length));
    }

    /// Begins another file's content with a request that was used before.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Marks the end of the content: no chunk comes after those that were added.
    pub fn end(&mut self) {
        self.last = true;
    }

    /// Takes the buffers out, so that the request can carry others.
    pub fn buffers(&mut self) -> impl Iterator<Item = B> {
        self.chunks.iter_mut().filter_map(|chunk| chunk.take().map(|(buffer, _)| buffer))
    }

    /// The digest, once the request that ends the content was hashed.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.stream.digest()
    }

    /// Goes to the first segment with a whole block; `false` when there is none.
    fn start(&mut self) -> bool {
        self.segment = 0;
        self.left = self.load_segment();
        self.skip_to_blocks()
    }

    /// Goes to the next segment with a whole block, unless the current one has some left; `false` at the end.
    fn skip_to_blocks(&mut self) -> bool {
        while self.left.is_empty() {
            if self.segment == CHUNKS_MAX {
                return false;
            }
            self.segment += 1;
            self.left = self.load_segment();
        }
        true
    }

    /// Feeds the current segment's partial blocks to the stream and returns the range of its whole ones.
    fn load_segment(&mut self) -> Range<usize> {
        match self.chunks.get(self.segment) {
            Some(Some((buffer, length))) => self.stream.buffer_partial(&buffer[..*length]),
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

/// A reading thread's lanes, and the queue of requests for them.
pub struct Scheduler<B> {
    requests: RefCell<Requests<B>>,
    arrived: Notify,
}

impl<B> Default for Scheduler<B> {
    fn default() -> Self {
        let requests = Requests { queue: VecDeque::new(), slots: Vec::new(), free: Vec::new() };
        Self { requests: RefCell::new(requests), arrived: Notify::new() }
    }
}

impl<B: Deref<Target = [u8]>> Scheduler<B> {
    /// Hashes the chunks of a request and returns it. Dropping the future earlier would occupy its slot forever.
    pub async fn hash(&self, mut request: Box<Request<B>>) -> Box<Request<B>> {
        if !request.start() {
            return request; // less than a block, and the content goes on
        }
        let slot = self.requests.borrow_mut().enqueue(request);
        self.arrived.notify_one();
        poll_fn(|context| {
            let mut requests = self.requests.borrow_mut();
            match requests.slots[slot].done.take() {
                Some(request) => {
                    requests.free.push(slot);
                    Poll::Ready(request)
                }
                None => {
                    requests.slots[slot].waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Runs the lanes and never ends. It has to be a task of its own: woken by the first request of a round, it runs
    /// after all tasks that are ready to enqueue theirs.
    pub async fn run(&self) {
        let mut lanes: Vec<Queued<B>> = Vec::with_capacity(LANES_MAX);
        loop {
            let none_waits = self.requests.borrow_mut().fill(&mut lanes);
            if lanes.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            step(&mut lanes);
            self.requests.borrow_mut().clear(&mut lanes, none_waits);
            if none_waits && !lanes.is_empty() {
                yield_now().await; // to the tasks whose requests are done, and to the ring
            }
        }
    }
}

/// Advances the streams in the lanes (at most [`LANES_MAX`]) to the end of the shortest segment, or by [`STEP_BLOCKS`].
fn step<B: Deref<Target = [u8]>>(lanes: &mut [Queued<B>]) {
    let blocks = lanes.iter().map(|queued| queued.request.left.len() / BLOCK_BYTES).min().unwrap_or(0).min(STEP_BLOCKS);
    match lanes {
        [a] => advance(&mut [a.request.lane()], blocks),
        [a, b] => advance(&mut [a.request.lane(), b.request.lane()], blocks),
        [a, b, c] => advance(&mut [a.request.lane(), b.request.lane(), c.request.lane()], blocks),
        [a, b, c, d] => {
            advance(&mut [a.request.lane(), b.request.lane(), c.request.lane(), d.request.lane()], blocks);
        }
        _ => unreachable!("from 1 to {LANES_MAX} lanes are filled"),
    }
    for queued in lanes {
        queued.request.left.start += blocks * BLOCK_BYTES;
    }
}

/// The requests that wait for a lane, and the slots in which done ones wait for their tasks.
struct Requests<B> {
    queue: VecDeque<Queued<B>>,
    slots: Vec<Slot<B>>,
    /// Numbers of slots that no request uses.
    free: Vec<usize>,
}

/// A request on its way through queue and lanes, with the number of its slot.
struct Queued<B> {
    request: Box<Request<B>>,
    slot: usize,
}

/// Where a task waits for its request.
struct Slot<B> {
    done: Option<Box<Request<B>>>,
    waker: Option<Waker>,
}

impl<B: Deref<Target = [u8]>> Requests<B> {
    fn enqueue(&mut self, request: Box<Request<B>>) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { done: None, waker: None });
            self.slots.len() - 1
        });
        debug_assert!(self.slots[slot].done.is_none(), "a slot has one request");
        self.queue.push_back(Queued { request, slot });
        slot
    }

    /// Fills the free lanes from the queue; whether none waits any more.
    fn fill(&mut self, lanes: &mut Vec<Queued<B>>) -> bool {
        while lanes.len() < LANES_MAX
            && let Some(next) = self.queue.pop_front()
        {
            lanes.push(next);
        }
        self.queue.is_empty()
    }

    /// Clears the lanes of the requests that are done, and of those that have hashed a chunk while others wait.
    fn clear(&mut self, lanes: &mut Vec<Queued<B>>, none_waits: bool) {
        for at in (0..lanes.len()).rev() {
            let segment = lanes[at].request.segment;
            if !lanes[at].request.skip_to_blocks() {
                self.complete(lanes.swap_remove(at));
            } else if lanes[at].request.segment > segment && !none_waits {
                self.queue.push_back(lanes.swap_remove(at));
            }
        }
    }

    fn complete(&mut self, queued: Queued<B>) {
        let slot = &mut self.slots[queued.slot];
        debug_assert!(slot.done.is_none(), "a slot has one request");
        slot.done = Some(queued.request);
        if let Some(waker) = slot.waker.take() {
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
            let mut request = Box::new(Request::default());
            let mut rest = &content[..];
            let mut chunks = 0;
            for &cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                // A buffer is longer than the bytes that were read into it.
                request.add([chunk, b"more"].concat(), chunk.len());
                rest = after;
                chunks += 1;
                if chunks % CHUNKS_MAX == 0 {
                    request = scheduler.hash(request).await;
                    assert_eq!(request.buffers().count(), CHUNKS_MAX);
                }
            }
            request.end();
            scheduler.hash(request).await.digest()
        };
        runtime.block_on(async {
            tokio::select! {
                digests = join_all(contents.iter().map(hash_one)) => digests,
                () = scheduler.run() => unreachable!("it never ends"),
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
    fn a_small_file_waits_for_a_step_of_the_large_ones_and_not_for_their_requests() {
        const CHUNK: usize = STEP_BLOCKS * BLOCK_BYTES;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let scheduler = Rc::new(Scheduler::default());
        let ended = Rc::new(RefCell::new(Vec::new()));
        let file = |name: &'static str, chunks: usize, length: usize| {
            let (scheduler, ended) = (Rc::clone(&scheduler), Rc::clone(&ended));
            // A task each: those whose requests are done continue in that order.
            tokio::task::spawn_local(async move {
                let mut request = Box::new(Request::default());
                (0..chunks).for_each(|_| request.add(vec![0; length], length));
                request.end();
                scheduler.hash(request).await;
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
