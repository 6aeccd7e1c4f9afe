//! What both engines share: the check before a file is read, and the outbox for messages and reports.

use std::ffi::{CStr, c_char};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use std::{io, mem, thread};

use prometheus::local::LocalHistogram;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::limits::{self, LARGE_BYTES};
use super::verify::Before;
use crate::files::root::Root;
use crate::files::unread::Unread;
use crate::hash::Digests;
use crate::job::{Job, Outcome, Outgoing, Report, Subject};
use crate::mailbox::ReportSender;
use crate::message::{Message, Paths, Removal, message_id, removal_id};
use crate::progress::{Progress, Shown, Volume};
use crate::queue::{Deadline, Queue};

/// Chunks between two checks whether a file has changed (16 MiB), so that it is not read to its end in vain then.
pub(super) const CHUNKS_BETWEEN_CHECKS: u64 = 256;

/// Bytes after which the reading of a file is shown as one that takes long: 16 MiB, a hundredth of a second.
const LONG_BYTES: u64 = 16 << 20;

/// What the threads of one volume read, and where its messages and reports go. Each reading thread has a clone.
#[derive(Clone)]
pub struct Readers {
    /// The data directories, which stay open for as long as there is a reading thread.
    #[expect(dead_code, reason = "it is held and never read")]
    pub roots: Vec<Arc<Root>>,
    /// Jobs to read. The queue is closed at the end.
    pub small: Arc<Queue>,
    /// Jobs of files that were found to be large. The queue is closed at the end.
    pub large: Arc<Queue>,
    /// The volume's progress, which counts jobs that were dispatched and are not read yet, queued ones included.
    pub volume: Arc<Volume>,
    /// The progress of the service, with its metrics.
    pub progress: Arc<Progress>,
    /// The number of hashing threads of this volume.
    pub workers: usize,
    /// How many files a thread with a ring has open.
    pub files: limits::Files,
    /// A thread with a ring reads by plain calls, because the ring cannot read these files inline.
    pub plain_reads: bool,
    /// The time after which no read is begun.
    pub deadline: Arc<Deadline>,
    /// Where batches of messages go; `None` where there is no output.
    pub messages: Option<mpsc::Sender<Vec<Outgoing>>>,
    /// Where reports of files without a message go.
    pub sender: ReportSender,
}

impl Readers {
    /// How many of the outstanding files of one size a thread may have in flight, so that no thread takes all of a few. It
    /// is no fewer than one thread is woken for.
    pub(super) fn share(&self, large: bool) -> usize {
        let larges = self.volume.large.load(Ordering::Relaxed);
        let outstanding = if large { larges } else { self.volume.read.waiting().saturating_sub(larges) };
        let queue = if large { &self.large } else { &self.small };
        outstanding.div_ceil(self.workers).max(queue.at_once())
    }
}

/// Examines an open file: see [`Before::examine`] and [`Job::admit`]. The directory is checked too, because another one
/// can be at its path for a while, or can have come there by an event that is not read yet.
pub(super) fn examine(job: &Job, file: BorrowedFd<'_>) -> Result<Before, Unread> {
    if let Some(inode) = job.within {
        job.directory.confirm(inode)?;
    }
    let before = Before::examine(file)?;
    job.admit(&before.version)?;
    // A large file goes through a queue of its own, where no small one waits behind it.
    if before.version.size > LARGE_BYTES && !job.large {
        return Err(Unread::Large);
    }
    Ok(before)
}

/// Shows how far the reading of a job's file has come, once it takes long: `shown` is kept until the file is read.
pub(super) fn show_long<'a>(volume: &'a Volume, shown: &mut Option<Shown<'a>>, job: &Job, at: u64, size: u64) {
    if at >= LONG_BYTES {
        shown.get_or_insert_with(|| volume.long.begin(job.directory.absolute(&job.name), size)).advance(at);
    }
}

/// See [`Version::is_racy`](crate::files::version::Version::is_racy).
fn is_racy(job: &Job, before: &Before) -> bool {
    let again = job.known.is_some_and(|known| known.is_racy() && known.is_of(&before.version));
    before.version.is_racy(before.examined, again)
}

/// Messages and reports of a reading thread. Those that come together are sent together: the next stage wakes once.
pub(super) struct Outbox {
    pub(super) readers: Readers,
    pub(super) messages: Vec<Outgoing>,
    reports: Vec<Report>,
    paths: Paths,
    body: Vec<u8>,
    /// Each thread has its own, so that threads do not share a cache line for it.
    seconds: LocalHistogram,
}

impl Outbox {
    pub(super) fn new(readers: Readers) -> Self {
        let seconds = readers.progress.metrics.read_seconds.local();
        Self { readers, messages: Vec::new(), reports: Vec::new(), paths: Paths::default(), body: Vec::new(), seconds }
    }

    /// Refuses to begin a read after the deadline, because the end of the process would wait for it.
    pub(super) fn check_deadline(&self) -> Result<(), Unread> {
        if self.readers.deadline.is_over() { Err(Unread::Stopped) } else { Ok(()) }
    }

    /// Makes a message of what was read, or a report if there is no message.
    pub(super) fn conclude(&mut self, job: Job, began: Instant, read: Result<(Before, Digests), Unread>) {
        if read.is_ok() {
            self.seconds.observe(began.elapsed().as_secs_f64());
        }
        self.readers.volume.read.done(1);
        if job.large {
            let larges = self.readers.volume.large.fetch_sub(1, Ordering::Relaxed);
            debug_assert!(larges > 0, "a job is concluded once");
        }
        // Only the content proves that a file is unchanged: an event can have come after the version was read.
        let judged = read.and_then(|(before, digests)| Ok((job.is_known(&before.version, &digests)?, before, digests)));
        let outcome = match judged {
            // After the deadline the ring has canceled the read.
            Err(Unread::Wanting(_)) if self.readers.deadline.is_over() => Outcome::Unread(Unread::Stopped),
            Err(unread) => match self.removal(&job, &unread) {
                Some(Ok(body)) => return self.add_removal(body, job),
                Some(Err(error)) => Outcome::Unread(Unread::Failed(io::Error::other(error))),
                None => Outcome::Unread(unread),
            },
            Ok((true, before, digests)) => {
                Outcome::Unchanged { version: before.version, racy: is_racy(&job, &before), digests }
            }
            Ok((false, before, digests)) => match self.compose(&job, &before, &digests) {
                Ok(body) => return self.add_message(body, job, &before, digests),
                Err(error) => Outcome::Unread(Unread::Failed(io::Error::other(error))),
            },
        };
        self.reports.push(Report { job, outcome });
    }

    fn compose(&mut self, job: &Job, before: &Before, digests: &Digests) -> Result<Box<[u8]>, simd_json::Error> {
        self.paths.begin(job.directory.prefix());
        self.paths.push(&job.name);
        job.directory.with_neighbors(&job.name, |names| names.iter().for_each(|name| self.paths.push(name)));
        Message::new(&self.paths, job.event, digests, &before.version, before.accessed, job.seen_at)
            .encode(&mut self.body)
    }

    /// The body of the path's removal, if that is due and there is no file.
    fn removal(&mut self, job: &Job, unread: &Unread) -> Option<Result<Box<[u8]>, simd_json::Error>> {
        let removal = job.removal.as_ref().filter(|_| unread.says_no_file())?;
        self.paths.begin(job.directory.prefix());
        self.paths.push(&job.name);
        let path = self.paths.first();
        Some(Removal::new(path, removal.event, removal.last, removal.id, job.seen_at).encode(&mut self.body))
    }

    fn add_removal(&mut self, body: Box<[u8]>, job: Job) {
        let path = [job.directory.prefix(), &job.name];
        let id = job.removal.as_ref().map_or(0, |removal| removal_id(&path, removal.last.as_ref(), removal.id));
        let raw_path = self.raw_path(&job);
        self.messages.push(Outgoing { body, id, raw_path, subject: Subject::Removal, job });
    }

    fn add_message(&mut self, body: Box<[u8]>, job: Job, before: &Before, digests: Digests) {
        self.messages.push(Outgoing {
            body,
            id: message_id(&[job.directory.prefix(), &job.name], &before.version, &digests.sha256),
            raw_path: self.raw_path(&job),
            subject: Subject::File {
                version: before.version,
                racy: is_racy(&job, before),
                linked: before.linked,
                digests,
            },
            job,
        });
    }

    /// The path of the file whose message was just composed, if the message cannot hold it as it is.
    fn raw_path(&self, job: &Job) -> Option<Vec<u8>> {
        let whole = || job.directory.absolute(&job.name);
        if self.paths.is_utf8() { None } else { Some(whole()).filter(|path| str::from_utf8(path).is_err()) }
    }

    /// Sends the messages and reports that came together.
    pub(super) fn flush(&mut self) {
        self.seconds.flush();
        match &self.readers.messages {
            _ if self.messages.is_empty() => {}
            Some(messages) => {
                self.readers.progress.publish.add(self.messages.len());
                // A closed channel means that the publisher has ended and has reported why.
                let sent = messages.try_send(mem::take(&mut self.messages));
                assert!(!matches!(sent, Err(TrySendError::Full(_))), "the channel has room for all jobs in flight");
            }
            None => self.reports.extend(self.messages.drain(..).map(Outgoing::confirmed)),
        }
        self.readers.sender.report(mem::take(&mut self.reports));
    }
}

impl Drop for Outbox {
    /// Sends what is left, because the source waits for it however the thread ends. A panic ends the process anyway.
    fn drop(&mut self) {
        if !thread::panicking() {
            self.flush();
        }
    }
}

/// A path below the root as the kernel takes it, in a buffer that is used again for each file.
#[derive(Default)]
pub(super) struct CPath {
    /// The path with a NUL at its end.
    bytes: Vec<u8>,
}

impl CPath {
    pub(super) fn set(&mut self, job: &Job) {
        self.bytes.clear();
        job.directory.append_below(&job.name, &mut self.bytes);
        self.bytes.push(0);
    }

    pub(super) fn as_c_str(&self) -> Result<&CStr, Unread> {
        // No name that the kernel gave us contains a NUL.
        CStr::from_bytes_with_nul(&self.bytes).map_err(|_| Unread::Gone)
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;
    use crate::files::directory::Directory;
    use crate::files::unread::Why;
    use crate::files::version::Timestamp;
    use crate::message::EventType;

    #[test]
    fn a_file_of_another_directory_at_the_same_path_is_not_read() {
        let top = tempfile::tempdir().unwrap();
        let (one, two) = (top.path().join("one"), top.path().join("two"));
        for directory in [&one, &two] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), "").unwrap();
        }
        let root =
            Arc::new(Root::new(File::open(top.path()).unwrap().into(), top.path().as_os_str().as_encoded_bytes()));
        let directory = Arc::new(Directory::new(&root, b"one"));
        let file = Job::new(directory, Arc::from(&b"file"[..]), EventType::Create, Timestamp::now());
        let job = Job { within: Some(fs::metadata(&one).unwrap().ino()), ..file };
        let examined = || examine(&job, File::open(one.join("file")).unwrap().as_fd());
        assert!(examined().is_ok());
        renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
        assert!(matches!(examined(), Err(Unread::Busy(Why::DirectoryMoved))));
    }
}
