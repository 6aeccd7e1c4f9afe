//! What both engines share: the way in, the checks before and after, and the way out.

use std::ffi::{CStr, c_char};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use std::{io, mem};

use prometheus::local::LocalHistogram;
use tokio::sync::mpsc;

use super::limits::{self, LARGE_BYTES};
use super::verify::Before;
use crate::files::root::Root;
use crate::files::unread::Unread;
use crate::hash::Digests;
use crate::job::{Job, Outcome, Outgoing, Report};
use crate::mailbox::Sender;
use crate::message::{Message, Paths, message_id};
use crate::progress::{Progress, Volume};
use crate::queue::{Deadline, Queue};

/// Chunks between two looks at a large file while it is read (16 MiB): a file that changes under our hands
/// is given up early instead of being read to its end for nothing.
pub(super) const CHUNKS_BETWEEN_LOOKS: u64 = 256;

/// What the threads of one volume read, and their way into the next stages; one clone a reading thread.
#[derive(Clone)]
pub struct Readers {
    /// The data directories: open for as long as there is a reading thread.
    pub roots: Vec<Arc<Root>>,
    /// Jobs to read; closed at the end.
    pub small: Arc<Queue>,
    /// Jobs of files that were found to be large; closed at the end.
    pub large: Arc<Queue>,
    /// The volume, where jobs handed in and not yet read are counted, queued ones included.
    pub volume: Arc<Volume>,
    /// For the numbers.
    pub progress: Arc<Progress>,
    /// Hashing threads of this volume.
    pub workers: usize,
    /// How many files a thread with a ring has open.
    pub files: limits::Files,
    /// The end, when it will not wait for files any longer.
    pub deadline: Arc<Deadline>,
    /// Messages to publish, as many as came together; nothing where they go nowhere.
    pub messages: Option<mpsc::Sender<Vec<Outgoing>>>,
    /// Reports of files that get no message.
    pub sender: Sender,
}

impl Readers {
    /// How many of the outstanding files of one size a thread may take, so that a few do not all end up with the one that
    /// was quicker to ask.
    pub(super) fn share(&self, large: bool) -> usize {
        let larges = self.volume.large.load(Ordering::Relaxed);
        let outstanding = if large { larges } else { self.volume.read.waiting().saturating_sub(larges) };
        outstanding.div_ceil(self.workers).max(1)
    }
}

/// Examines an open file: see [`Before::examine`] and [`Job::admit`]. One of another directory, which stands at the path
/// for a while or whose event has not been read yet, is not what the job means.
pub(super) fn examine(job: &Job, file: BorrowedFd<'_>) -> Result<Before, Unread> {
    if let Some(inode) = job.within {
        job.directory.confirm(inode)?;
    }
    let before = Before::examine(file)?;
    job.admit(&before.version)?;
    // It waits for its turn elsewhere, where nobody waits behind it.
    if before.version.size > LARGE_BYTES && !job.large {
        return Err(Unread::Large);
    }
    Ok(before)
}

/// See [`Version::is_racy`](crate::files::version::Version::is_racy).
fn is_racy(job: &Job, before: &Before) -> bool {
    let again = job.known.is_some_and(|known| known.is_racy() && known.is_of(&before.version));
    before.version.is_racy(before.examined, again)
}

/// A reading thread's way out: files that end together go on together, so that the next stage wakes once for them.
pub(super) struct Outbox {
    pub(super) readers: Readers,
    pub(super) messages: Vec<Outgoing>,
    reports: Vec<Report>,
    paths: Paths,
    body: Vec<u8>,
    /// A thread's own, so that threads do not share a cache line for it.
    seconds: LocalHistogram,
}

impl Outbox {
    pub(super) fn new(readers: Readers) -> Self {
        let seconds = readers.progress.metrics.read_seconds.local();
        Self { readers, messages: Vec::new(), reports: Vec::new(), paths: Paths::default(), body: Vec::new(), seconds }
    }

    /// Refuses to begin what the process's end would wait for.
    pub(super) fn begin(&self) -> Result<(), Unread> {
        if self.readers.deadline.is_over() { Err(Unread::Stopped) } else { Ok(()) }
    }

    /// Turns what was read into a message, or into silence when it is what was confirmed last.
    pub(super) fn conclude(&mut self, job: Job, began: Instant, read: Result<(Before, Digests), Unread>) {
        if read.is_ok() {
            self.seconds.observe(began.elapsed().as_secs_f64());
        }
        self.readers.volume.read.done(1);
        if job.large {
            self.readers.volume.large.fetch_sub(1, Ordering::Relaxed);
        }
        // The version alone proves nothing about an event that came after it was read; the content does.
        let judged = read.and_then(|(before, digests)| Ok((job.is_known(&before.version, &digests)?, before, digests)));
        let outcome = match judged {
            // The ring has taken it back.
            Err(Unread::Wanting(_)) if self.readers.deadline.is_over() => Outcome::Unread(Unread::Stopped),
            Err(unread) => Outcome::Unread(unread),
            Ok((true, before, digests)) => {
                Outcome::Unchanged { version: before.version, racy: is_racy(&job, &before), digests }
            }
            Ok((false, before, digests)) => match self.compose(&job, &before, &digests) {
                Ok(body) => {
                    let Before { version, .. } = before;
                    self.messages.push(Outgoing {
                        body,
                        id: message_id(&[job.directory.prefix(), &job.name], &version, &digests.sha256),
                        raw_path: self.raw_path(&job),
                        version,
                        racy: is_racy(&job, &before),
                        linked: before.linked,
                        digests,
                        job,
                    });
                    return;
                }
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

    /// The path of the file just composed, where its message cannot hold it as it is.
    fn raw_path(&self, job: &Job) -> Option<Vec<u8>> {
        let whole = || job.directory.absolute(&job.name);
        if self.paths.exact() { None } else { Some(whole()).filter(|path| str::from_utf8(path).is_err()) }
    }

    /// Hands on what has come together.
    pub(super) fn hand_on(&mut self) {
        self.seconds.flush();
        match &self.readers.messages {
            _ if self.messages.is_empty() => {}
            // Never full, by the bound on jobs; closed when the publisher has ended, and said why.
            Some(messages) => {
                self.readers.progress.publish.add(self.messages.len());
                drop(messages.try_send(mem::take(&mut self.messages)));
            }
            None => self.reports.extend(self.messages.drain(..).map(Outgoing::confirmed)),
        }
        self.readers.sender.report(mem::take(&mut self.reports));
    }
}

/// A path below the root as the kernel wants it, in a buffer that is used again for the next.
#[derive(Default)]
pub(super) struct Below {
    /// With the NUL at its end.
    bytes: Vec<u8>,
}

impl Below {
    pub(super) fn set(&mut self, job: &Job) {
        self.bytes.clear();
        job.directory.append_below(&job.name, &mut self.bytes);
        self.bytes.push(0);
    }

    pub(super) fn path(&self) -> Result<&CStr, Unread> {
        // No name that the kernel gave us holds a NUL.
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
    use crate::files::version::Stamp;
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
        let job = Job {
            directory: Arc::new(Directory::new(&root, b"one")),
            name: Arc::from(&b"file"[..]),
            event: EventType::Create,
            seen_at: Stamp::now(),
            known: None,
            invalidate_first: false,
            large: false,
            within: Some(fs::metadata(&one).unwrap().ino()),
        };
        let examined = || examine(&job, File::open(one.join("file")).unwrap().as_fd());
        assert!(examined().is_ok());
        renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
        assert!(matches!(examined(), Err(Unread::Busy(Why::DirectoryMoved))));
    }
}
