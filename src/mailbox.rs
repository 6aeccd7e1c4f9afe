//! Notices from the stages to the source of jobs: a bounded channel, and an eventfd that poll(2) can wait for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::error::{Error, StopSignal, os_message};
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
}

/// The end of the mailbox that each stage has a clone of.
#[derive(Debug, Clone)]
pub struct Sender {
    notices: SyncSender<Notice>,
    waker: Arc<Waker>,
}

/// The source's end of the mailbox.
pub struct Mailbox {
    notices: Receiver<Notice>,
    /// A notice that ended a sleep before it began.
    first: Option<Notice>,
    waker: Arc<Waker>,
}

/// Wakes the source. It is used only when the source sleeps, so that a busy pipeline makes no system calls for it.
#[derive(Debug)]
struct Waker {
    eventfd: OwnedFd,
    sleeping: AtomicBool,
    /// A [`Notice::Rescan`] is in the mailbox.
    rescan_asked: AtomicBool,
    /// A [`Notice::Asked`] is in the mailbox.
    question: AtomicBool,
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
        if !self.waker.rescan_asked.swap(true, Ordering::SeqCst) {
            self.send(Notice::Rescan);
        }
    }

    /// Asks the source a question. The mailbox holds one at most: returns whether there was room for it.
    #[must_use]
    pub fn ask(&self, question: Box<Question>) -> bool {
        let room = !self.waker.question.swap(true, Ordering::SeqCst);
        if room {
            self.send(Notice::Asked(question));
        }
        room
    }

    /// Makes a guard that reports a failure when it is dropped by a panic, because the source would wait for the
    /// reports of that thread or task without end.
    #[must_use]
    pub fn guard_panics(self) -> PanicGuard {
        PanicGuard(self)
    }

    fn send(&self, notice: Notice) {
        // A source that has ended reads no more notices.
        let _ = self.notices.send(notice);
        if self.waker.sleeping.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow, because it is written once a sleep.
            let _ = rustix::io::write(&self.waker.eventfd, &1u64.to_ne_bytes());
        }
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
    /// [`Error::Internal`] when there is no descriptor for it.
    pub(crate) fn new(bound: usize) -> Result<(Sender, Self), Error> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Internal(format!("eventfd: {}", os_message(&errno))))?;
        let waker = Waker {
            eventfd,
            sleeping: AtomicBool::new(false),
            rescan_asked: AtomicBool::new(false),
            question: AtomicBool::new(false),
        };
        let waker = Arc::new(waker);
        let (notices, receiver) = sync_channel(bound);
        Ok((Sender { notices, waker: Arc::clone(&waker) }, Self { notices: receiver, first: None, waker }))
    }

    /// The next notice, if there is one.
    pub fn take(&mut self) -> Option<Notice> {
        let notice = self.first.take().or_else(|| self.notices.try_recv().ok())?;
        if matches!(notice, Notice::Rescan) {
            // Before the rescan begins: a signal that comes from here on asks for another one.
            self.waker.rescan_asked.store(false, Ordering::SeqCst);
        }
        if matches!(notice, Notice::Asked(_)) {
            self.waker.question.store(false, Ordering::SeqCst);
        }
        Some(notice)
    }

    /// Sleeps until a notice comes, `also` becomes readable, or `longest` is over.
    ///
    /// # Errors
    /// [`Error::Internal`] when poll(2) fails, which it has no reason to.
    pub fn sleep(&mut self, also: Option<BorrowedFd<'_>>, longest: Option<Duration>) -> Result<(), Error> {
        self.waker.sleeping.store(true, Ordering::SeqCst);
        // A notice that was sent before the line above did not write to the eventfd.
        match self.notices.try_recv() {
            Ok(notice) => {
                self.waker.sleeping.store(false, Ordering::SeqCst);
                self.first = Some(notice);
                return Ok(());
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        let waker = PollFd::new(&self.waker.eventfd, PollFlags::IN);
        let timeout = longest.and_then(|longest| Timespec::try_from(longest).ok());
        let polled = match also {
            Some(also) => poll(&mut [waker, PollFd::from_borrowed_fd(also, PollFlags::IN)], timeout.as_ref()),
            None => poll(&mut [waker], timeout.as_ref()),
        };
        self.waker.sleeping.store(false, Ordering::SeqCst);
        match polled {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Internal(format!("poll: {}", os_message(&errno)))),
        }
        let _ = rustix::io::read(self.waker.eventfd.as_fd(), &mut [0; 8]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
                None => mailbox.sleep(None, None).unwrap(),
            }
        }
        sender.join().unwrap();
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
