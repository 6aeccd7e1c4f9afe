//! Signals: SIGINT and SIGTERM ask for the end, SIGHUP asks a service for a rescan, SIGXFSZ is ignored.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::raw::c_int;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{process, ptr, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, StopSignal};
use crate::logging;
use crate::mailbox::Sender;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The orderly end.
    Stop(StopSignal),
    /// A rescan of the directories.
    Rescan,
}

/// Whose signals they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// `watch`: SIGHUP asks for a rescan, also where it was ignored at start, and an end that is asked for is a clean one.
    Service,
    /// A command that ends when its work is done: a signal ends it early. SIGHUP does so, too, unless it was ignored at start
    /// (nohup(1)).
    OneShot,
    /// A command that works until it is ended: a signal is one way to do so. SIGHUP is as in [`Caller::OneShot`].
    Listener,
}

/// The orderly end takes 10 s at most: the sum of [`STOP_TIMEOUT`](crate::dispatch::STOP_TIMEOUT) and of the time to close the
/// connection. One that has not come to its own end then never may.
const END_TIMEOUT: Duration = Duration::from_secs(11);

type Act = Box<dyn Fn(Request) + Send + Sync>;

/// The first signal that asks for the end is passed on, the second ends the process at once. So does the first one before
/// somebody is named to be asked (the start still waits for the broker), because nothing is in progress then.
pub struct CaughtSignals(Arc<OnceLock<Act>>);

impl CaughtSignals {
    /// Catches the signals from now on. SIGINT and SIGTERM are caught also where they were ignored at start: a shell has its
    /// background jobs ignore SIGINT, and who sends one to this process means it.
    ///
    /// # Errors
    /// [`Error::System`] when the system refuses handlers, [`Error::Threads`] when it gives no thread.
    pub fn listen(caller: Caller) -> Result<Self, Error> {
        let hang_up = (caller == Caller::Service || !is_ignored(SIGHUP)).then_some(SIGHUP);
        let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hang_up))
            .map_err(|cause| Error::system("cannot listen for signals", cause))?;
        let act = Arc::new(OnceLock::<Act>::new());
        let caught = Self(Arc::clone(&act));
        // From now on only the signals' own thread handles them: this one, and those that it makes, may hang in a call to a
        // file system, where no handler runs (and the kernel prefers this one: signal(7), pthread_sigmask(3)).
        mask(libc::SIG_BLOCK);
        let listen = move || {
            mask(libc::SIG_UNBLOCK);
            let mut asked = false;
            for number in signals.forever() {
                match (request(number, caller), act.get()) {
                    (Request::Stop(signal), _) if asked => end_at_once(signal, caller),
                    (Request::Stop(signal), None) => end_before_the_start(signal, caller),
                    (Request::Stop(signal), Some(act)) => {
                        asked = true;
                        act(Request::Stop(signal));
                        if caller != Caller::Listener {
                            end_in_time(signal, caller);
                        }
                    }
                    (Request::Rescan, Some(act)) => act(Request::Rescan),
                    // The start lists the directories anyway.
                    (Request::Rescan, None) => {}
                }
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(listen);
        thread.map_err(|cause| Error::Threads { what: "the signals' thread", cause })?;
        Ok(caught)
    }

    /// Names who is asked.
    pub fn ask(self, act: impl Fn(Request) + Send + Sync + 'static) {
        let set = self.0.set(Box::new(act));
        assert!(set.is_ok(), "this takes the one value of its kind, so it runs once");
    }

    /// Names the mailbox of the source of jobs that is asked.
    pub fn ask_source(self, sender: Sender) {
        self.ask(move |request| match request {
            Request::Stop(signal) => sender.stop(signal),
            Request::Rescan => sender.rescan(),
        });
    }
}

fn request(number: c_int, caller: Caller) -> Request {
    match number {
        SIGINT => Request::Stop(StopSignal::Interrupt),
        SIGHUP if caller == Caller::Service => Request::Rescan,
        SIGHUP => Request::Stop(StopSignal::HangUp),
        _ => Request::Stop(StopSignal::Terminate),
    }
}

#[expect(clippy::exit, reason = "the main thread waits for the broker")]
fn end_before_the_start(signal: StopSignal, caller: Caller) -> ! {
    let status = match caller {
        Caller::OneShot => {
            let early = Error::Interrupted { signal, left: "it had not begun".to_owned() };
            logging::failure(&early);
            early.exit_status()
        }
        Caller::Service | Caller::Listener => {
            tracing::info!(event = "stopped", %signal, "{signal}: stopped before it was ready");
            0
        }
    };
    logging::finish();
    process::exit(status.into())
}

/// Ends the process, unless it has ended by then: a main thread that hangs in a call to a file system reads no mailbox.
fn end_in_time(signal: StopSignal, caller: Caller) {
    let wait = move || {
        thread::sleep(END_TIMEOUT);
        tracing::warn!(
            event = "ended_by_force",
            %signal,
            seconds = END_TIMEOUT.as_secs(),
            "{signal}: the end has taken {} s, and is not waited for any more; a file system that does not answer is one reason",
            END_TIMEOUT.as_secs()
        );
        end_at_once(signal, caller);
    };
    // Without a thread the second signal does it.
    let _ = thread::Builder::new().name("end".to_owned()).spawn(wait);
}

#[expect(clippy::exit, reason = "the main thread is not asked")]
fn end_at_once(signal: StopSignal, caller: Caller) -> ! {
    logging::finish();
    process::exit(if caller == Caller::OneShot { signal.exit_status().into() } else { 1 })
}

/// Prepares what is inherited from the parent. It runs before any thread is made, because threads inherit the mask.
///
/// The signals that are handled are unblocked: a parent that blocks them in its own thread, to handle them elsewhere, hands
/// the mask down through fork(2) and execve(2). SIGXFSZ is ignored, so that a write beyond the limit of a file's size
/// (`ulimit -f`, `LimitFSIZE=`) fails with EFBIG, as on a full disk it fails with ENOSPC (setrlimit(2)). SIGPIPE is ignored
/// by the standard library, and a write to a pipe that nobody reads fails with EPIPE.
pub fn prepare() {
    mask(libc::SIG_UNBLOCK);
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad moment.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Blocks or unblocks the signals that are handled, in this thread and those that it makes.
fn mask(how: c_int) {
    let mut handled = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set that the two other functions read, sigaddset gets signals that exist, and the
    // former mask is not asked for.
    unsafe {
        libc::sigemptyset(handled.as_mut_ptr());
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            libc::sigaddset(handled.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, handled.as_ptr(), ptr::null_mut());
    }
}

/// Whether a signal is ignored now.
fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing, and it writes the present one to memory of ours.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid action, so it is initialized whether or not the call has succeeded.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
