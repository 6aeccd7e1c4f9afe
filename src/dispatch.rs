//! The sources' side of the stages: each dispatches as many jobs as there is room for, and completes each.

use std::collections::VecDeque;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::files::unread::Unread;
use crate::hash::lanes::LANES_MAX;
use crate::job::{Job, Outcome, Report};
use crate::mailbox::{Mailbox, Notice, Reports, Sender};
use crate::progress::{self, Engine, Progress};
use crate::queue::{Deadline, Queue};

/// How long the end waits for files in progress and for their confirms. The contract allows 10 s; a container engine
/// kills after 10 s.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// The part of it after which no file and no further piece of one is begun: a read that hangs in the kernel delays the
/// end of the process, and one of 5 s that begins now ends within the contract's 10 s.
pub const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the end checks whether all that is in flight only waits for a queue.
pub const STOP_LOOKS: Duration = Duration::from_millis(50);

/// How long the end waits for the threads after that: closing the connection is one round trip.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many small files one reading thread is woken for: as many as it hashes side by side. With fewer a second thread would
/// gain less than its wake-up costs.
const SMALL_AT_ONCE: usize = LANES_MAX;

/// The same of large files, each of which takes longer than any wake-up.
const LARGE_AT_ONCE: usize = 1;

/// Notices that are no reports: a failure of each stage and of the source itself, the signal to stop, the signal for a rescan, a
/// question, the end of the wait.
pub(crate) const NOTICES_BESIDE_REPORTS: usize = 9;

/// The jobs in flight of a source, which has the files of one volume, or of all.
pub struct Dispatcher {
    /// Reports and other notices.
    pub mailbox: Mailbox,
    volumes: Vec<Volume>,
    /// The number of the first of them.
    first: usize,
}

/// The threads of the stages behind the sources.
pub struct Stages {
    /// The name of the read engine.
    pub engine: &'static str,
    /// How each volume's files are read.
    pub engines: Vec<Engine>,
    /// The number of hashing threads.
    pub workers: usize,
    pub(crate) queues: Vec<Arc<Queue>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) deadline: Arc<Deadline>,
    pub(crate) readers: Vec<JoinHandle<()>>,
    pub(crate) publisher: Option<JoinHandle<()>>,
    /// No thread of them runs any more.
    pub(crate) ended: bool,
}

/// The running stages, and a source for each volume, which has a thread of its own.
pub struct Pipeline {
    /// The threads behind the sources.
    pub stages: Stages,
    /// The main thread's mailbox.
    pub mailbox: Mailbox,
    /// The way to the main thread.
    pub sender: Sender,
    /// By the volumes' numbers, each with the way to it.
    pub sources: Vec<(Dispatcher, Sender)>,
}

/// The jobs of one file system.
pub(crate) struct Volume {
    /// Its progress, which health and metrics read.
    pub(crate) progress: Arc<progress::Volume>,
    pub(crate) small: InFlight,
    pub(crate) large: InFlight,
    /// Jobs of large files that wait for room in the queue for such files. The source's own bound holds each of them.
    large_waiting: VecDeque<Job>,
}

impl Volume {
    /// Makes a volume that has `bound` jobs of small files, and as many of large ones, in flight at most.
    pub(crate) fn new(bound: usize, directories: String) -> Self {
        let progress = Arc::new(progress::Volume::new(directories));
        let small = InFlight::new(bound, SMALL_AT_ONCE);
        Self { progress, small, large: InFlight::new(bound, LARGE_AT_ONCE), large_waiting: VecDeque::new() }
    }

    /// Puts jobs into the queue for small or for large files.
    fn submit(&mut self, mut jobs: Vec<Job>, large: bool) {
        // A job that the source submits again starts as a small one again.
        jobs.iter_mut().for_each(|job| job.large = large);
        if large {
            self.progress.large.fetch_add(jobs.len(), Ordering::Relaxed);
        }
        self.progress.read.add(jobs.len());
        self.in_flight_mut(large).submit(jobs);
    }

    /// Completes a job and returns its report, unless the report says that the file is large: then the job waits for
    /// the queue of large files, and the source does not see the report.
    fn complete(&mut self, report: Report) -> Option<Report> {
        self.in_flight_mut(report.job.large).complete();
        if !matches!(report.outcome, Outcome::Unread(Unread::Large)) {
            return Some(report);
        }
        assert!(!report.job.large, "a job is found to be large once");
        self.large_waiting.push_back(report.job);
        None
    }

    /// Dispatches waiting jobs of large files while there is room.
    fn dispatch_large(&mut self) {
        let count = self.large.room().min(self.large_waiting.len());
        if count > 0 {
            let jobs = self.large_waiting.drain(..count).collect();
            self.submit(jobs, true);
        }
    }

    fn in_flight_mut(&mut self, large: bool) -> &mut InFlight {
        if large { &mut self.large } else { &mut self.small }
    }

    /// The most jobs that can be in flight at once.
    pub(crate) fn bound(&self) -> usize {
        self.small.bound + self.large.bound
    }

    fn in_flight(&self) -> usize {
        self.small.count + self.large.count + self.large_waiting.len()
    }

    /// Reports how many are in flight to those who cannot ask the source.
    fn report(&self) {
        self.progress.in_flight.store(self.in_flight(), Ordering::Relaxed);
    }
}

/// The jobs between one queue's entry and their reports.
pub(crate) struct InFlight {
    pub(crate) queue: Arc<Queue>,
    count: usize,
    bound: usize,
}

impl InFlight {
    fn new(bound: usize, at_once: usize) -> Self {
        Self { queue: Arc::new(Queue::new(bound, at_once)), count: 0, bound }
    }

    fn room(&self) -> usize {
        self.bound - self.count
    }

    fn submit(&mut self, jobs: Vec<Job>) {
        self.count += jobs.len();
        assert!(self.count <= self.bound, "more jobs are in flight than the bound, on which each channel's size rests");
        self.queue.push(jobs);
    }

    fn complete(&mut self) {
        assert!(self.count > 0, "a job has one report");
        self.count -= 1;
    }
}

impl Dispatcher {
    /// Of volumes with numbers from `first` on.
    pub(crate) fn new(mailbox: Mailbox, volumes: Vec<Volume>, first: usize) -> Self {
        Self { mailbox, volumes, first }
    }

    /// How many jobs of each volume may be submitted now, by
    /// [`Root::volume`](crate::files::root::Root::volume): none of those of other sources.
    #[must_use]
    pub fn rooms(&self) -> Vec<usize> {
        let own = self.volumes.iter().map(|volume| volume.small.room());
        iter::repeat_n(0, self.first).chain(own).collect()
    }

    /// How many jobs may be submitted now, whichever volumes they are of.
    #[must_use]
    pub fn room(&self) -> usize {
        self.volumes.iter().map(|volume| volume.small.room()).min().unwrap_or(0)
    }

    /// Whether no file is about to wait for the report of another: each volume has half of its jobs at most.
    #[must_use]
    pub fn has_much_room(&self) -> bool {
        self.volumes.iter().all(|volume| volume.small.room() >= volume.small.bound / 2)
    }

    /// Whether jobs are in flight.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.in_flight() > 0
    }

    /// The number of jobs in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.volumes.iter().map(Volume::in_flight).sum()
    }

    /// Dispatches a batch. It must have no more jobs of a volume than [`Dispatcher::rooms`] says.
    ///
    /// # Panics
    /// When it has more, or a job of another source's volume.
    pub fn submit(&mut self, batch: impl IntoIterator<Item = Job>) {
        let mut batch: Vec<Job> = batch.into_iter().collect();
        let several = self.volumes.len() > 1;
        for (number, volume) in (self.first..).zip(&mut self.volumes) {
            let of_volume = |job: &mut Job| !several || job.directory.root().volume() == number;
            let own: Vec<Job> = batch.extract_if(.., of_volume).collect();
            if !own.is_empty() {
                volume.submit(own, false);
                volume.report();
            }
        }
        assert!(batch.is_empty(), "each job is of a volume that was there at start");
    }

    /// The next notice. Jobs that it reports are completed: they are in flight no more.
    pub fn next_notice(&mut self) -> Option<Notice> {
        let notice = self.mailbox.take()?;
        let Notice::Reports(reports) = notice else { return Some(notice) };
        let (volumes, first) = (&mut self.volumes, self.first);
        let complete = |report: Report| volumes[report.job.directory.root().volume() - first].complete(report);
        let reports = reports.into_iter().filter_map(complete).collect();
        for volume in &mut self.volumes {
            volume.dispatch_large();
            volume.report();
        }
        Some(Notice::Reports(reports))
    }

    /// Drops the jobs of large files that wait for their queue, because the end has begun and none of them has.
    pub fn begin_no_more(&mut self) {
        for volume in &mut self.volumes {
            volume.large_waiting.clear();
            volume.report();
        }
    }
}

impl Stages {
    /// Whether a message without a confirm may have reached the broker's consumers, or still may. Files that are being
    /// read, and messages that were returned because no queue is bound, are not counted.
    #[must_use]
    pub fn may_have_published(&self) -> bool {
        let unpublished = self.progress.publish.waiting();
        !self.ended
            || self.progress.metrics.unconfirmed_messages.get() > 0
            || unpublished != 0 && unpublished != self.progress.unroutable()
    }

    /// Whether nothing is in flight but messages that wait until a queue is bound, which can take any time. A message
    /// that was published to find out, and that is neither returned nor confirmed yet, may have reached a queue.
    #[must_use]
    pub fn wait_for_a_queue(&self) -> bool {
        let (in_flight, unanswered) = (self.progress.in_flight(), self.progress.metrics.unconfirmed_messages.get());
        in_flight > 0 && self.progress.unroutable() == in_flight && unanswered == 0
    }

    /// Ends reading: no further file, and no further piece of a file, is begun.
    pub fn read_no_more(&self) {
        self.deadline.end();
    }

    /// Ends the stages. The caller has waited for the jobs in flight; late reports are in the sources' mailboxes. `mailbox` is
    /// the caller's, whose notices end a sleep.
    ///
    /// # Errors
    /// [`Error::System`] when poll(2) fails.
    pub fn finish(&mut self, mailbox: &mut Mailbox) -> Result<(), Error> {
        self.queues.iter().for_each(|queue| queue.close());
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut pause = Duration::from_micros(50);
        for thread in self.readers.drain(..).chain(self.publisher.take()) {
            while !thread.is_finished() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(()); // a thread hangs in a call; the end of the process ends it
                }
                mailbox.sleep(None, Some(left.min(pause)), Reports::Wake)?;
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
    use crate::job::tests::jobs;

    fn unread(job: Job, unread: Unread) -> Report {
        Report { job, outcome: Outcome::Unread(unread) }
    }

    #[test]
    fn a_large_file_leaves_its_room_to_small_ones_and_is_completed_once() {
        let mut volume = Volume::new(2, String::new());
        volume.submit(jobs(2), false);
        assert_eq!(volume.small.room(), 0);
        let job = volume.small.queue.try_next().unwrap();
        assert!(volume.complete(unread(job, Unread::Large)).is_none());
        assert_eq!((volume.small.room(), volume.in_flight()), (1, 2));
        volume.dispatch_large();
        let job = volume.large.queue.try_next().unwrap();
        assert!(job.large && volume.complete(unread(job, Unread::Gone)).is_some());
        assert_eq!((volume.small.room(), volume.large.room(), volume.in_flight()), (1, 2, 1));
    }

    #[test]
    #[should_panic(expected = "more jobs are in flight than the bound")]
    fn no_more_jobs_are_in_flight_than_the_bound() {
        let mut volume = Volume::new(2, String::new());
        volume.submit(jobs(2), false);
        volume.submit(jobs(1), false);
    }

    #[test]
    #[should_panic(expected = "a job has one report")]
    fn no_job_has_two_reports() {
        let mut volume = Volume::new(2, String::new());
        jobs(1).into_iter().for_each(|job| drop(volume.complete(unread(job, Unread::Gone))));
    }
}
