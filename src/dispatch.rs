//! The source's side of the stages: it hands in jobs, as many as there is room for, and gets each one's report back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::files::unread::Unread;
use crate::job::{Job, Outcome, Report};
use crate::mailbox::{Mailbox, Notice, Sender};
use crate::progress::{self, Progress};
use crate::queue::{Deadline, Queue};

/// How long the files in progress and their confirms are waited for at the end. The contract allows 10 s; a
/// container engine kills after 10 s.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// After so much of it no file and no piece of one is begun any more: a read that hangs in the kernel holds up the
/// process's end, and one of 5 s that begins now ends within the contract's 10 s.
pub const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the end looks whether what is still in progress only waits for a queue.
pub const STOP_LOOKS: Duration = Duration::from_millis(50);

/// How long the threads' own end is waited for after that: closing the connection is one round trip.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Letters that are no reports: a failure of each stage, and the signal to stop.
pub(crate) const NOTICES_BESIDE_REPORTS: usize = 8;

/// The running stages behind a source.
pub struct Dispatcher {
    /// What comes back.
    pub mailbox: Mailbox,
    /// For the signals' thread.
    pub sender: Sender,
    /// The read engine's name.
    pub engine: &'static str,
    /// Hashing threads.
    pub workers: usize,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) deadline: Arc<Deadline>,
    pub(crate) readers: Vec<JoinHandle<()>>,
    pub(crate) publisher: Option<JoinHandle<()>>,
    /// No thread of the stages runs any more.
    pub(crate) ended: bool,
}

/// One file system's jobs.
pub(crate) struct Volume {
    /// For whoever asks what waits where.
    pub(crate) signs: Arc<progress::Volume>,
    pub(crate) small: Share,
    pub(crate) large: Share,
    /// Found to be large, and not handed to the readers again yet. Their source holds each of them in its own bound.
    aside: VecDeque<Job>,
}

/// Jobs between a queue's entry and their reports.
pub(crate) struct Share {
    pub(crate) queue: Arc<Queue>,
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
    pub(crate) fn new(most: usize, directories: String) -> Self {
        let signs = Arc::new(progress::Volume::new(directories));
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
        self.signs.read.add(jobs.len());
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

    /// Jobs of it that can be in flight at once.
    pub(crate) fn most(&self) -> usize {
        self.small.most + self.large.most
    }

    fn in_flight(&self) -> usize {
        self.small.in_flight + self.large.in_flight + self.aside.len()
    }
}

impl Dispatcher {
    /// How many jobs of each volume may be handed in now, in the order of their numbers ([`Root::volume`](crate::files::root::Root::volume)).
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

    /// Hands in a batch of at most as many jobs of each volume as [`Dispatcher::rooms`] says.
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
        let handed_on = self.progress.publish.waiting();
        !self.ended
            || self.progress.metrics.unconfirmed_messages.get() > 0
            || handed_on != 0 && handed_on != self.progress.unroutable()
    }

    /// Whether nothing is on its way but messages that wait until a queue is bound: nobody can say how long that takes. One
    /// that was published to see whether it is, and is not answered yet, may have reached a queue.
    #[must_use]
    pub fn waits_for_a_queue(&self) -> bool {
        let unanswered = self.progress.metrics.unconfirmed_messages.get();
        self.busy() && self.progress.unroutable() == self.in_flight() && unanswered == 0
    }

    /// The next letter; reported jobs are on their way no more.
    pub fn next_notice(&mut self) -> Option<Notice> {
        let notice = self.mailbox.take()?;
        let Notice::Reports(reports) = notice else { return Some(notice) };
        let volumes = &mut self.volumes;
        let taken_back = |report: Report| match volumes.get_mut(report.job.directory.root().volume()) {
            Some(volume) => volume.take_back(report),
            None => Some(report), // of no job of ours
        };
        let reports = reports.into_iter().filter_map(taken_back).collect();
        self.volumes.iter_mut().for_each(Volume::go_on);
        Some(Notice::Reports(reports))
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
        let deadline = Instant::now() + CLOSE_TIMEOUT;
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
