//! The wiring: every thread, every channel and every bound between a source of work and its confirms.
//!
//! A source (the watch, or a scan) hands in jobs while there is room for their volume ([`Pipeline::rooms`]) and gets exactly one
//! [`Report`] for each. The number of jobs between the two is bounded, and every channel is large enough for
//! all of them: no stage ever waits for a full channel in a circle, and a slow broker slows reading. Each volume has a
//! bound of its own, so that one that hangs keeps no other's files out; and what the readers find to be large gives its
//! place up and waits aside, so that no number of large files keeps a small one out.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::cli::Output;
use crate::config::PipelineSettings;
use crate::error::Error;
use crate::hash::Digests;
use crate::message::EventType;
use crate::publish;
use crate::read::limits::{self, FILES_IN_FLIGHT};
use crate::read::stable::{Root, Stamp, Unread, Version};
use crate::read::{self, Deadline, Queue, Readers};
use crate::vitals::{self, Vitals};
use crate::watch::directory::Directory;
use crate::watch::index::Name;

/// How long the files in progress and their confirms are waited for at the end. The contract allows 10 s; a
/// container engine kills after 10 s.
pub const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// After so much of it no file and no piece of one is begun any more: a read that hangs in the kernel holds up the
/// process's end, and one of 5 s that begins now ends within the contract's 10 s.
pub const READ_PATIENCE: Duration = Duration::from_secs(3);

/// How often the end looks whether what is still in progress only waits for a queue.
pub const STOP_LOOKS: Duration = Duration::from_millis(50);

/// How long the threads' own end is waited for after that: closing the connection is one round trip.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Letters that are no reports: a failure of each stage, and the signal to stop.
const LETTERS_BESIDE_REPORTS: usize = 8;

/// A file to be read and published.
#[derive(Debug)]
pub struct Job {
    /// Where it is.
    pub directory: Arc<Directory>,
    /// Its name there.
    pub name: Name,
    /// How its version came to its path.
    pub event: EventType,
    /// When the event was read.
    pub seen_at: Stamp,
    /// What was confirmed last for this path, if anything: the same again is not published.
    pub known: Option<Known>,
    /// The inode of the directory that is meant, where a rename can put another in its place.
    pub within: Option<u64>,
    /// What the ledger holds may be of a file that can come back to this path as it was: it has to be forgotten before
    /// another is told.
    pub doubted: bool,
    /// It was found to be large, and its turn has come: the pipeline says so, and not the source.
    pub large: bool,
}

impl Job {
    /// Whether this version may be told.
    ///
    /// # Errors
    /// [`Unread::Another`].
    pub fn admit(&self, version: &Version) -> Result<(), Unread> {
        let another = |known: Known| known != Known::ANNOUNCED && !known.may_be(version);
        if self.doubted && self.known.is_some_and(another) { Err(Unread::Another) } else { Ok(()) }
    }

    /// Whether what was read is what was confirmed last.
    ///
    /// # Errors
    /// [`Unread::Another`]: it is not, and may not be told yet. That showed only when it was read.
    pub fn is_known(&self, version: &Version, digests: &Digests) -> Result<bool, Unread> {
        match self.known {
            Some(known) if known.is(version, digests) => Ok(true),
            Some(known) if self.doubted && known.content.is_some() => Err(Unread::Another),
            _ => Ok(false),
        }
    }
}

/// What was confirmed for a path: its version and its content, by hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// [`Version::fingerprint`].
    version: u64,
    /// [`Version::fingerprint_without_ctime`] but for its last bit, which is [`RACY`]. Nothing in the others: the version
    /// counts as a whole only.
    data: u64,
    /// The first half of the content's SHA-256; nothing when only the version is known.
    content: Option<NonZeroU64>,
    /// The inode's number.
    inode: u64,
}

/// See [`Known::is_racy`].
const RACY: u64 = 1;

impl Known {
    /// Of a path that had a message, of whatever file: it equals nothing that is read.
    pub const ANNOUNCED: Self = Self { version: 0, data: 0, content: None, inode: 0 };

    /// Of what was read. `racy`: see [`Version::is_racy`].
    #[must_use]
    pub fn new(version: &Version, digests: &Digests, racy: bool) -> Self {
        Self { content: content(digests), ..Self::seen(version, racy) }.exact(version)
    }

    /// Of a file that was there before us, and has not been read.
    #[must_use]
    pub fn seen(version: &Version, racy: bool) -> Self {
        Self { version: version.fingerprint(), data: u64::from(racy), content: None, inode: version.inode }
    }

    /// The same, where it may not be what was told last unless the whole version agrees, ctime too.
    #[must_use]
    pub fn by_version_only(self) -> Self {
        Self { data: self.data & RACY, ..self }
    }

    /// The same, once it is certain to be what was told last: of this version.
    #[must_use]
    pub fn exact(self, version: &Version) -> Self {
        let data = version.fingerprint_without_ctime() & !RACY | self.data & RACY;
        Self { data: if self.content.is_some() { data } else { self.data }, ..self }
    }

    /// Whether it is certain to be what was told last: not of [`Known::by_version_only`].
    #[must_use]
    pub fn is_exact(self) -> bool {
        self.content.is_none() || self.data & !RACY != 0
    }

    /// Whether the content is known, and not the version alone.
    #[must_use]
    pub fn is_read(self) -> bool {
        self.content.is_some()
    }

    /// The number of the inode that it is of.
    #[must_use]
    pub fn inode(self) -> u64 {
        self.inode
    }

    /// Whether it is of the version with this fingerprint.
    #[must_use]
    pub fn is_of_fingerprint(self, version: u64) -> bool {
        self.version == version
    }

    /// Whether it is of this version.
    #[must_use]
    pub fn is_of(self, version: &Version) -> bool {
        self.version == version.fingerprint()
    }

    /// Whether a file of this version may be the one that is known: it is of this version, or of another one with all but
    /// ctime the same, which the content decides.
    #[must_use]
    pub fn may_be(self, version: &Version) -> bool {
        let without_ctime = || {
            let data = self.data & !RACY;
            data != 0 && data == version.fingerprint_without_ctime() & !RACY
        };
        self.is_of(version) || self.content.is_some() && without_ctime()
    }

    /// Whether the version may hide a later change, so that the content has to be looked at once more.
    #[must_use]
    pub fn is_racy(self) -> bool {
        self.data & RACY != 0
    }

    /// Whether this version with this content is what is known.
    #[must_use]
    pub fn is(self, version: &Version, digests: &Digests) -> bool {
        self.may_be(version) && self.content == content(digests)
    }
}

fn content(digests: &Digests) -> Option<NonZeroU64> {
    let mut half = [0; 8];
    half.copy_from_slice(&digests.sha256[..8]);
    // 0 would mean "unknown"; as a hash it is worth no more than 1.
    NonZeroU64::new(u64::from_le_bytes(half)).or(NonZeroU64::new(1))
}

/// A message on its way to the output.
#[derive(Debug)]
pub struct Outgoing {
    /// The JSON.
    pub body: Box<[u8]>,
    /// The message id.
    pub id: u128,
    /// The path, where it is not UTF-8.
    pub raw_path: Option<Vec<u8>>,
    /// The version that was read.
    pub version: Version,
    /// See [`Version::is_racy`].
    pub racy: bool,
    /// The file has further names.
    pub linked: bool,
    /// The digests of its content.
    pub digests: Digests,
    /// The job that it answers.
    pub job: Job,
}

impl Outgoing {
    /// The job's end, once the output has confirmed the message.
    #[must_use]
    pub fn confirmed(self) -> Report {
        let Self { job, version, racy, linked, digests, .. } = self;
        Report { job, outcome: Outcome::Confirmed { version, racy, linked, digests } }
    }
}

/// What became of a job.
#[derive(Debug)]
pub struct Report {
    /// The job.
    pub job: Job,
    /// Its end.
    pub outcome: Outcome,
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// The output has confirmed the message.
    Confirmed {
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The file has further names.
        linked: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// The file is what was confirmed last; no message.
    Unchanged {
        /// The version that was read.
        version: Version,
        /// See [`Version::is_racy`].
        racy: bool,
        /// The digests of its content.
        digests: Digests,
    },
    /// No message now, and why.
    Unread(Unread),
}

/// What a source finds in its mailbox.
#[derive(Debug)]
pub enum Letter {
    /// Jobs' ends, as many as came together.
    Reports(Vec<Report>),
    /// A stage cannot go on.
    Failed(Error),
    /// SIGINT or SIGTERM.
    Stop,
}

/// The stages' way back to the source.
#[derive(Clone)]
pub struct Post {
    letters: SyncSender<Letter>,
    bell: Arc<Bell>,
}

/// The source's end of it: a channel, and a descriptor to sleep on beside others.
pub struct Mailbox {
    letters: Receiver<Letter>,
    first: Option<Letter>,
    bell: Arc<Bell>,
}

/// Rung only when the source is about to sleep, so that a busy pipeline makes no system calls for it.
struct Bell {
    rung: OwnedFd,
    sleeping: AtomicBool,
}

impl Post {
    /// Hands jobs' ends to the source, if there are any.
    pub fn report(&self, reports: Vec<Report>) {
        if !reports.is_empty() {
            self.send(Letter::Reports(reports));
        }
    }

    /// Tells the source that a stage cannot go on.
    pub fn fail(&self, error: Error) {
        self.send(Letter::Failed(error));
    }

    /// Tells the source to come to an end.
    pub fn stop(&self) {
        self.send(Letter::Stop);
    }

    /// Reports a failure when the thread that holds it panics: nothing may wait for its reports for ever.
    #[must_use]
    pub fn watch_for_panic(self) -> PanicWatch {
        PanicWatch(self)
    }

    fn send(&self, letter: Letter) {
        // A source that has ended reads no more letters.
        let _ = self.letters.send(letter);
        if self.bell.sleeping.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow: it is rung once a sleep.
            let _ = rustix::io::write(&self.bell.rung, &1u64.to_ne_bytes());
        }
    }
}

/// See [`Post::watch_for_panic`].
pub struct PanicWatch(Post);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Internal("a thread of the pipeline has panicked".to_owned()));
        }
    }
}

impl Mailbox {
    fn new(bound: usize) -> Result<(Post, Self), Error> {
        let rung = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Internal(format!("eventfd: {errno}")))?;
        let bell = Arc::new(Bell { rung, sleeping: AtomicBool::new(false) });
        let (letters, receiver) = sync_channel(bound);
        Ok((Post { letters, bell: Arc::clone(&bell) }, Self { letters: receiver, first: None, bell }))
    }

    /// The next letter, if there is one.
    pub fn take(&mut self) -> Option<Letter> {
        self.first.take().or_else(|| self.letters.try_recv().ok())
    }

    /// Sleeps until a letter comes, `also` becomes readable, or the time is over.
    ///
    /// # Errors
    /// [`Error::Internal`] when poll(2) fails, which it has no reason to.
    pub fn sleep(&mut self, also: Option<BorrowedFd<'_>>, longest: Option<Duration>) -> Result<(), Error> {
        self.bell.sleeping.store(true, Ordering::SeqCst);
        // A letter sent before the line above rang no bell.
        match self.letters.try_recv() {
            Ok(letter) => {
                self.bell.sleeping.store(false, Ordering::SeqCst);
                self.first = Some(letter);
                return Ok(());
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        let bell = PollFd::new(&self.bell.rung, PollFlags::IN);
        let timeout = longest.and_then(|longest| Timespec::try_from(longest).ok());
        let polled = match also {
            Some(also) => poll(&mut [bell, PollFd::from_borrowed_fd(also, PollFlags::IN)], timeout.as_ref()),
            None => poll(&mut [bell], timeout.as_ref()),
        };
        self.bell.sleeping.store(false, Ordering::SeqCst);
        match polled {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Internal(format!("poll: {errno}"))),
        }
        let _ = rustix::io::read(self.bell.rung.as_fd(), &mut [0; 8]);
        Ok(())
    }
}

/// The running stages behind a source.
pub struct Pipeline {
    /// What comes back.
    pub mailbox: Mailbox,
    /// For the signals' thread.
    pub post: Post,
    /// The read engine's name.
    pub engine: &'static str,
    /// Hashing threads.
    pub workers: usize,
    volumes: Vec<Volume>,
    vitals: Arc<Vitals>,
    deadline: Arc<Deadline>,
    readers: Vec<JoinHandle<()>>,
    publisher: Option<JoinHandle<()>>,
    /// No thread of the stages runs any more.
    ended: bool,
}

/// One file system's jobs.
struct Volume {
    /// For whoever asks what waits where.
    signs: Arc<vitals::Volume>,
    small: Share,
    large: Share,
    /// Found to be large, and not handed to the readers again yet. Their source holds each of them in its own bound.
    aside: VecDeque<Job>,
}

/// Jobs between a queue's entry and their reports.
struct Share {
    queue: Arc<Queue>,
    in_flight: usize,
    most: usize,
}

impl Share {
    fn new(most: usize) -> Self {
        Self { queue: Arc::new(Queue::new(most)), in_flight: 0, most }
    }

    fn room(&self) -> usize {
        self.most - self.in_flight
    }
}

impl Volume {
    fn new(most: usize, directories: String) -> Self {
        let signs = Arc::new(vitals::Volume::new(directories));
        Self { signs, small: Share::new(most), large: Share::new(most), aside: VecDeque::new() }
    }

    fn hand_in(&mut self, mut jobs: Vec<Job>, large: bool) {
        // One that comes again is found to be large again.
        jobs.iter_mut().for_each(|job| job.large = large);
        let share = if large { &mut self.large } else { &mut self.small };
        share.in_flight += jobs.len();
        if large {
            self.signs.large.fetch_add(jobs.len(), Ordering::Relaxed);
        }
        self.signs.read.take_on(jobs.len());
        share.queue.hand_in(jobs);
    }

    /// Takes a report in; one that says that the file is large is none of the source's.
    fn take_back(&mut self, report: Report) -> Option<Report> {
        let share = if report.job.large { &mut self.large } else { &mut self.small };
        share.in_flight -= 1;
        if !matches!(report.outcome, Outcome::Unread(Unread::Large)) {
            return Some(report);
        }
        self.aside.push_back(report.job);
        None
    }

    /// Hands large files to the readers while there is room.
    fn go_on(&mut self) {
        let count = self.large.room().min(self.aside.len());
        if count > 0 {
            let jobs = self.aside.drain(..count).collect();
            self.hand_in(jobs, true);
        }
    }

    fn in_flight(&self) -> usize {
        self.small.in_flight + self.large.in_flight + self.aside.len()
    }
}

/// The paths of a volume's data directories.
fn directories(roots: &[Arc<Root>], volume: usize) -> String {
    let paths = roots.iter().filter(|root| root.volume() == volume).map(|root| format!("{:?}", root.path()));
    paths.collect::<Vec<_>>().join(", ")
}

impl Pipeline {
    /// Starts the readers, then the output (for AMQP: connected, exchange declared).
    ///
    /// # Errors
    /// What keeps one of them from starting.
    pub fn start(settings: &PipelineSettings, roots: &[Arc<Root>], vitals: Arc<Vitals>) -> Result<Self, Error> {
        let count = roots.iter().map(|root| root.volume() + 1).max().unwrap_or(1);
        let volumes: Vec<Volume> = limits::share_out(settings.workers, count)
            .enumerate()
            .map(|(number, workers)| {
                // A window of messages unconfirmed, and a thread's fill of files being read and waiting to be.
                let most = settings.publish.window + 2 * workers * FILES_IN_FLIGHT;
                Volume::new(most, directories(roots, number))
            })
            .collect();
        vitals.set_volumes(volumes.iter().map(|volume| Arc::clone(&volume.signs)).collect());
        let in_flight_max = volumes.iter().map(|volume| volume.small.most + volume.large.most).sum();
        let (post, mailbox) = Mailbox::new(in_flight_max + LETTERS_BESIDE_REPORTS)?;
        let (messages, outgoing) = mpsc::channel(in_flight_max);
        let deadline = Arc::new(Deadline::default());
        let readers = |volume: &Volume| Readers {
            roots: roots.to_vec(),
            small: Arc::clone(&volume.small.queue),
            large: Arc::clone(&volume.large.queue),
            volume: Arc::clone(&volume.signs),
            vitals: Arc::clone(&vitals),
            workers: settings.workers,
            files: limits::files_each(settings.workers, None),
            deadline: Arc::clone(&deadline),
            messages: (settings.output != Output::None).then(|| messages.clone()),
            post: post.clone(),
        };
        let readers = volumes.iter().map(readers).collect();
        let read::Started { engine, workers, threads } = read::start(settings.engine, settings.workers, readers)?;
        // Last: where a thread cannot be had, no connection has to be taken down again, which takes the client another.
        let publisher = publish::start(settings.output, &settings.publish, outgoing, post.clone(), &vitals)?;
        let readers = threads;
        Ok(Self { mailbox, post, engine, workers, volumes, vitals, deadline, readers, publisher, ended: false })
    }

    /// How many jobs of each volume may be handed in now, in the order of their numbers ([`Root::volume`]).
    #[must_use]
    pub fn rooms(&self) -> Vec<usize> {
        self.volumes.iter().map(|volume| volume.small.room()).collect()
    }

    /// How many jobs of whatever volume may be handed in now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.volumes.iter().map(|volume| volume.small.room()).min().unwrap_or(0)
    }

    /// Whether jobs are on their way.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.in_flight() > 0
    }

    /// Jobs on their way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.volumes.iter().map(Volume::in_flight).sum()
    }

    /// Hands in a batch of at most as many jobs of each volume as [`Pipeline::rooms`] says.
    pub fn submit(&mut self, batch: impl IntoIterator<Item = Job>) {
        let mut batch: Vec<Job> = batch.into_iter().collect();
        let several = self.volumes.len() > 1;
        for (number, volume) in self.volumes.iter_mut().enumerate() {
            let of_volume = |job: &mut Job| !several || job.directory.root().volume() == number;
            let own: Vec<Job> = batch.extract_if(.., of_volume).collect();
            if !own.is_empty() {
                volume.hand_in(own, false);
            }
        }
    }

    /// Whether a message may have reached somebody, or may still, whose confirm has not come: files that are being read, and
    /// messages that came back for want of a queue, are none.
    #[must_use]
    pub fn may_have_told(&self) -> bool {
        let handed_on = self.vitals.publish.waiting();
        !self.ended
            || self.vitals.metrics.unconfirmed_messages.get() > 0
            || handed_on != 0 && handed_on != self.vitals.unroutable()
    }

    /// Whether nothing is on its way but messages that wait until a queue is bound: nobody can say how long that takes. One
    /// that was published to see whether it is, and is not answered yet, may have reached a queue.
    #[must_use]
    pub fn waits_for_a_queue(&self) -> bool {
        let unanswered = self.vitals.metrics.unconfirmed_messages.get();
        self.busy() && self.vitals.unroutable() == self.in_flight() && unanswered == 0
    }

    /// The next letter; reported jobs are on their way no more.
    pub fn next_letter(&mut self) -> Option<Letter> {
        let letter = self.mailbox.take()?;
        let Letter::Reports(reports) = letter else { return Some(letter) };
        let volumes = &mut self.volumes;
        let taken_back = |report: Report| match volumes.get_mut(report.job.directory.root().volume()) {
            Some(volume) => volume.take_back(report),
            None => Some(report), // of no job of ours
        };
        let reports = reports.into_iter().filter_map(taken_back).collect();
        self.volumes.iter_mut().for_each(Volume::go_on);
        Some(Letter::Reports(reports))
    }

    /// Gives up what waits aside: the end has begun, and none of it has.
    pub fn begin_no_more(&mut self) {
        self.volumes.iter_mut().for_each(|volume| volume.aside.clear());
    }

    /// Gives up what is not being read yet, and further pieces of what is.
    pub fn read_no_more(&self) {
        self.deadline.end();
    }

    /// Ends the stages; what they still hold has been waited for already. What they have reported by then is in the mailbox.
    ///
    /// # Errors
    /// [`Error::Internal`] when poll(2) fails.
    pub fn finish(&mut self) -> Result<(), Error> {
        for volume in &self.volumes {
            volume.small.queue.close();
            volume.large.queue.close();
        }
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut pause = Duration::from_micros(50);
        for thread in self.readers.drain(..).chain(self.publisher.take()) {
            while !thread.is_finished() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(()); // they hold what can't be had any more; the process's end ends them
                }
                self.mailbox.sleep(None, Some(left.min(pause)))?;
                pause = (2 * pause).min(Duration::from_millis(5));
            }
            let _ = thread.join();
        }
        self.ended = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_wakes_a_sleeper_and_none_is_lost() {
        let (post, mut mailbox) = Mailbox::new(4).unwrap();
        let sender = std::thread::spawn(move || {
            for _ in 0..10_000 {
                post.stop();
            }
        });
        let mut seen = 0;
        while seen < 10_000 {
            match mailbox.take() {
                Some(_) => seen += 1,
                None => mailbox.sleep(None, None).unwrap(),
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn known_needs_version_and_content() {
        let stamp = Stamp { seconds: 0, nanoseconds: 0 };
        let version = Version { inode: 1, size: 1, modified: stamp, changed: stamp };
        let later = Stamp { seconds: 1, nanoseconds: 0 };
        let [a, b] = [Digests::of(b"a"), Digests::of(b"b")];
        let (other_file, touched) = (Version { inode: 2, ..version }, Version { modified: later, ..version });
        let metadata_alone = Version { changed: later, ..version };
        let known = Known::new(&version, &a, false);
        assert!(known.is(&version, &a) && !known.is(&version, &b));
        assert!(known.is(&metadata_alone, &a) && !known.is(&metadata_alone, &b) && !known.is_of(&metadata_alone));
        assert!(!known.may_be(&other_file) && !known.may_be(&touched));
        let only = known.by_version_only();
        assert!(only.is(&version, &a) && !only.may_be(&metadata_alone) && !only.is_exact());
        assert_eq!(only.exact(&version), known);
        let racy = Known::new(&version, &a, true);
        assert!(racy.is_racy() && racy.by_version_only().is_racy() && racy.is(&metadata_alone, &a) && racy != known);
        let seen = Known::seen(&version, true);
        assert!(seen.is_of(&version) && seen.is_racy() && seen.is_exact() && seen.exact(&version) == seen);
        assert!(!seen.may_be(&metadata_alone) && !seen.is(&version, &a));
        assert!(!Known::ANNOUNCED.may_be(&version) && !Known::ANNOUNCED.is_racy() && Known::ANNOUNCED.is_exact());
    }
}
