//! Notices from the stages to the source of jobs: a bounded channel, and an eventfd that poll(2) can wait for.
//!
//! A source that is about to wake for something else can leave reports for a while: they do not wake it then, and every
//! other notice does.

mod waker;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{self, Arc};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use self::waker::{ASLEEP, Event, LEAVES_REPORTS, Slept, Waker};
use crate::error::{Error, StopSignal};
use crate::inquiry::Question;
use crate::job::Report;

/// A notice in the mailbox of a source.
#[derive(Debug)]
pub enum Notice {
    /// Reports of jobs, as many as came together.
    Reports(Vec<Report>),
    /// A stage has failed and cannot continue.
    Failed(Error),
    /// A signal asks for the end.
    Stop(StopSignal),
    /// SIGHUP asks for a rescan.
    Rescan,
    /// Somebody asks what became of files. Who does not answer drops it.
    Asked(Box<Question>),
    /// What is in flight is not waited for any more: from the main thread to the watch of a volume.
    Leave,
    /// The watch of a volume has ended: from there to the main thread.
    Ended,
}

/// The end of the mailbox that each stage has a clone of.
#[derive(Debug, Clone)]
pub struct Sender {
    notices: SyncSender<Notice>,
    shared: Arc<Shared>,
}

/// The source's end of the mailbox.
pub struct Mailbox {
    notices: Receiver<Notice>,
    /// A notice that ended a sleep before it began.
    first: Option<Notice>,
    shared: Arc<Shared>,
}

/// What both ends have.
#[derive(Debug)]
struct Shared {
    /// Used only when the source sleeps, so that a busy pipeline makes no system calls for it.
    waker: Waker<OwnedFd>,
    /// A [`Notice::Rescan`] is in the mailbox.
    rescan_asked: AtomicBool,
    /// A [`Notice::Asked`] is in the mailbox.
    question: AtomicBool,
}

/// An eventfd(2).
impl Event for OwnedFd {
    fn set(&self) {
        // The counter cannot overflow, because it is written once a sleep.
        let _ = rustix::io::write(self, &1u64.to_ne_bytes());
    }
}

/// What ends a sleep besides the notices that always do, and besides its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reports {
    /// Reports end it.
    Wake,
    /// Reports are left for so long at most.
    Leave(Duration),
}

impl Sender {
    /// Sends reports to the source, if there are any.
    pub fn report(&self, reports: Vec<Report>) {
        if !reports.is_empty() {
            self.send(Notice::Reports(reports));
        }
    }

    /// Notifies the source that a stage cannot continue.
    pub fn fail(&self, error: Error) {
        self.send(Notice::Failed(error));
    }

    /// Asks the source to end.
    pub fn stop(&self, signal: StopSignal) {
        self.send(Notice::Stop(signal));
    }

    /// Asks the source to rescan. The mailbox holds one such notice at most, however fast the signals come.
    pub fn rescan(&self) {
        if !self.shared.rescan_asked.swap(true, Ordering::SeqCst) {
            self.send(Notice::Rescan);
        }
    }

    /// Asks the source a question. The mailbox holds one at most: returns whether there was room for it.
    #[must_use]
    pub fn ask(&self, question: Box<Question>) -> bool {
        let room = !self.shared.question.swap(true, Ordering::SeqCst);
        if room {
            self.send(Notice::Asked(question));
        }
        room
    }

    /// Asks the source to wait for nothing any more.
    pub fn leave(&self) {
        self.send(Notice::Leave);
    }

    /// Says that the sender has ended.
    pub fn ended(&self) {
        self.send(Notice::Ended);
    }

    /// Makes a guard that reports a failure when it is dropped by a panic, because the source would wait for the
    /// reports of that thread or task without end.
    #[must_use]
    pub fn guard_panics(self) -> PanicGuard {
        PanicGuard(self)
    }

    fn send(&self, notice: Notice) {
        let urgent = !matches!(notice, Notice::Reports(_));
        // A source that has ended reads no more notices.
        let _ = self.notices.send(notice);
        self.shared.waker.wake(urgent);
    }
}

/// The way of the stages: reports go to the source of their volume, failures to the main thread.
#[derive(Debug, Clone)]
pub struct ReportSender {
    main: Sender,
    /// By the numbers of the volumes; one alone has the reports of all.
    sources: Arc<[Sender]>,
}

impl ReportSender {
    /// Makes the way to a source for each volume, by the volumes' numbers, and to the main thread.
    #[must_use]
    pub fn new(main: Sender, sources: Vec<Sender>) -> Self {
        Self { main, sources: sources.into() }
    }

    /// Sends each report to its source.
    pub fn report(&self, mut reports: Vec<Report>) {
        if let [source] = &*self.sources {
            return source.report(reports);
        }
        for (volume, source) in self.sources.iter().enumerate() {
            source.report(reports.extract_if(.., |report| report.job.directory.root().volume() == volume).collect());
        }
        debug_assert!(reports.is_empty(), "each volume has its source");
    }

    /// As [`Sender::fail`], for the main thread.
    pub fn fail(&self, error: Error) {
        self.main.fail(error);
    }

    /// As [`Sender::guard_panics`], for the main thread.
    #[must_use]
    pub fn guard_panics(&self) -> PanicGuard {
        self.main.clone().guard_panics()
    }
}

/// The main thread is the source of all volumes.
impl From<Sender> for ReportSender {
    fn from(main: Sender) -> Self {
        Self { sources: [main.clone()].into(), main }
    }
}

/// See [`Sender::guard_panics`].
pub struct PanicGuard(Sender);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Internal("a thread of the pipeline has panicked".to_owned()));
        }
    }
}

impl Mailbox {
    /// Makes a mailbox for `bound` notices.
    ///
    /// # Errors
    /// [`Error::System`] when there is no descriptor for it.
    pub(crate) fn new(bound: usize) -> Result<(Sender, Self), Error> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::system("no eventfd can be had", errno))?;
        let (rescan_asked, question) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { waker: Waker::new(eventfd), rescan_asked, question });
        let (notices, receiver) = sync_channel(bound);
        Ok((Sender { notices, shared: Arc::clone(&shared) }, Self { notices: receiver, first: None, shared }))
    }

    /// The next notice, if there is one.
    pub fn take(&mut self) -> Option<Notice> {
        let notice = self.first.take().or_else(|| self.notices.try_recv().ok())?;
        if matches!(notice, Notice::Rescan) {
            // Before the rescan begins: a signal that comes from here on asks for another one.
            self.shared.rescan_asked.store(false, Ordering::SeqCst);
        }
        if matches!(notice, Notice::Asked(_)) {
            self.shared.question.store(false, Ordering::SeqCst);
        }
        Some(notice)
    }

    /// Sleeps until a notice comes, `also` becomes readable, or `longest` is over. Where reports are left, their time is the
    /// longest at most.
    ///
    /// # Errors
    /// [`Error::System`] when poll(2) fails, which it has no reason to.
    pub fn sleep(
        &mut self,
        also: Option<BorrowedFd<'_>>,
        longest: Option<Duration>,
        reports: Reports,
    ) -> Result<(), Error> {
        let (state, longest) = match reports {
            Reports::Wake => (ASLEEP, longest),
            Reports::Leave(most) => (LEAVES_REPORTS, Some(longest.map_or(most, |longest| longest.min(most)))),
        };
        let wait = |eventfd: &OwnedFd| {
            let count = 1 + usize::from(also.is_some());
            let eventfd = eventfd.as_fd();
            let mut polled = [eventfd, also.unwrap_or(eventfd)].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let timeout = longest.and_then(|longest| Timespec::try_from(longest).ok());
            let ended = poll(&mut polled[..count], timeout.as_ref());
            (ended, polled[0].revents().contains(PollFlags::IN))
        };
        let (ended, woken) = match self.shared.waker.sleep(state, || self.notices.try_recv().ok(), wait) {
            Slept::Found(notice) => {
                self.first = Some(notice);
                return Ok(());
            }
            Slept::Waited(ended) => ended,
        };
        match ended {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::system("poll(2)", errno)),
        }
        // One who wakes may write only after this, and then the next sleep is a short one.
        if woken {
            let _ = rustix::io::read(&self.shared.waker.event, &mut [0; 8]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_notice_wakes_a_sleeper_and_none_is_lost() {
        let (sender, mut mailbox) = Mailbox::new(4).unwrap();
        let sender = std::thread::spawn(move || {
            for _ in 0..10_000 {
                sender.stop(StopSignal::Terminate);
            }
        });
        let mut seen = 0;
        while seen < 10_000 {
            match mailbox.take() {
                Some(_) => seen += 1,
                None => mailbox.sleep(None, None, Reports::Wake).unwrap(),
            }
        }
        sender.join().unwrap();
    }

    /// A notice comes while the source sleeps, or just before; how long it then sleeps.
    fn slept(notice: Notice, reports: Reports, longest: Duration) -> Duration {
        let (sender, mut mailbox) = Mailbox::new(4).unwrap();
        let began = Instant::now();
        let sender = thread::spawn(move || {
            // Until it sleeps, or is about to.
            while sender.shared.waker.is_awake() {
                thread::yield_now();
            }
            sender.send(notice);
        });
        mailbox.sleep(None, Some(longest), reports).unwrap();
        sender.join().unwrap();
        assert!(mailbox.take().is_some());
        began.elapsed()
    }

    #[test]
    fn reports_that_are_left_do_not_wake_and_all_else_does() {
        let (long, short) = (Duration::from_secs(20), Duration::from_millis(40));
        let report = || Notice::Reports(Vec::new());
        let stop = || Notice::Stop(StopSignal::Terminate);
        assert!(slept(report(), Reports::Wake, long) < long);
        assert!(slept(stop(), Reports::Leave(long), long) < long);
        assert!(slept(Notice::Rescan, Reports::Leave(long), long) < long);
        assert!(slept(report(), Reports::Leave(short), long) < long, "it is left for a limited time");
        // A report that came before the source looked ends the sleep at once, so a few tries.
        assert!(
            (0..20).any(|_| slept(report(), Reports::Leave(short), long) >= short),
            "a report has woken the source"
        );
    }

    #[test]
    fn nothing_is_lost_while_sleeps_of_both_kinds_take_turns() {
        let (sender, mut mailbox) = Mailbox::new(4).unwrap();
        let senders: Vec<_> = (0..2)
            .map(|number| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for round in 0..5_000 {
                        let urgent = (round + number) % 3 == 0;
                        sender.send(if urgent {
                            Notice::Stop(StopSignal::Terminate)
                        } else {
                            Notice::Reports(Vec::new())
                        });
                    }
                })
            })
            .collect();
        let (mut seen, mut sleeps) = (0, 0);
        while seen < 10_000 {
            let leave = Reports::Leave(Duration::from_micros(50));
            match mailbox.take() {
                Some(_) => seen += 1,
                None => {
                    sleeps += 1;
                    mailbox.sleep(None, None, if sleeps % 2 == 0 { Reports::Wake } else { leave }).unwrap();
                }
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }

    #[test]
    fn any_number_of_signals_for_a_rescan_takes_one_place() {
        let (sender, mut mailbox) = Mailbox::new(2).unwrap();
        for _ in 0..2 {
            (0..100).for_each(|_| sender.rescan());
            assert!(matches!(mailbox.take(), Some(Notice::Rescan)) && mailbox.take().is_none());
        }
    }
}
