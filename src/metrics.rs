//! The numbers that the stages count, for Prometheus.
//!
//! Names follow Prometheus' rules: `apollonia_`, base units, `_total` for what only grows. A test holds the alert rules and
//! the dashboard in `deploy/` to the names that are here.

mod maker;
mod process;

use std::io;

use maker::Maker;
use process::Process;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use crate::files::unread::Unread;
use crate::files::version::Timestamp;
use crate::job::{Outcome, Report};

/// The content type of the text: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Upper bounds in seconds for reading one file: from a small warm one (20 us) to a large one of a cold disk.
const READ_SECONDS: [f64; 14] =
    [20e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25, 1.0, 10.0, 60.0];

/// Upper bounds in seconds from the event to the confirm: from an idle service (0.6 ms) to a broker that was blocked.
const END_TO_END_SECONDS: [f64; 14] =
    [500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0];

/// The labels of the build: version, processor architecture, and the oldest compiler that it is built with.
const BUILD: [&str; 3] = [env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, env!("CARGO_PKG_RUST_VERSION")];

/// Every counter, gauge and histogram; its help text in `default` says what it counts.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) process: Process,
    pub(crate) info: IntGaugeVec,
    pub events: Events,
    pub events_coalesced: IntCounter,
    pub overflows_kernel: IntCounter,
    pub overflows_pending: IntCounter,
    pub rescans: Rescans,
    pub files_read: IntCounter,
    pub read_bytes: IntCounter,
    pub files_unchanged: IntCounter,
    pub files_gone: IntCounter,
    pub failures: Failures,
    pub busy: IntCounter,
    pub wants: IntCounter,
    pub messages_published: IntCounter,
    pub messages_confirmed: IntCounter,
    pub messages_nacked: IntCounter,
    pub messages_returned: IntCounter,
    pub reconnects: IntCounter,
    pub pending_files: IntGauge,
    pub oldest_pending_seconds: Gauge,
    pub(crate) in_flight_files: IntGauge,
    pub unconfirmed_messages: IntGauge,
    pub(crate) unroutable_messages: IntGauge,
    pub known_files: IntGauge,
    pub refused_files: IntGauge,
    pub watched_directories: IntGauge,
    pub unwatched_directories: IntGauge,
    pub(crate) broker_connected: IntGauge,
    pub(crate) broker_blocked: IntGauge,
    pub(crate) ready: IntGauge,
    pub ledger_rows: IntGauge,
    pub ledger_bytes: IntGauge,
    pub(crate) ledger_waiting_rows: IntGauge,
    pub ledger_failures: IntCounter,
    pub(crate) log_lines_dropped: IntCounter,
    pub(crate) stage_stalled_seconds: IntGaugeVec,
    pub read_seconds: Histogram,
    pub end_to_end_seconds: Histogram,
}

/// One long function, because it is a table: a metric with its name and its help is one row, wherever a reader looks.
impl Default for Metrics {
    fn default() -> Self {
        let make = Maker(Registry::new());
        let build = Opts::new("apollonia_build_info", "Always 1; the labels say what was built.");
        let build = make.add(IntGaugeVec::new(build, &["version", "arch", "rust_version"]));
        build.with_label_values(&BUILD).set(1);
        let [created, moved_to, closed, removed] = make.counters(
            "apollonia_events_total",
            "Kernel events read, by kind.",
            "kind",
            ["created", "moved_to", "closed", "removed"],
        );
        let [overflows_kernel, overflows_pending] = make.counters(
            "apollonia_overflows_total",
            "Times that events were lost: by the kernel's queue, or for want of room in the pending set. A rescan follows.",
            "queue",
            ["kernel", "pending"],
        );
        let [start, overflow, timer, signal, unseen_writer] = make.counters(
            "apollonia_rescans_total",
            "Rescans, by cause: the start, an overflow (IN_Q_OVERFLOW, or no room in the pending set), the timer, SIGHUP, or the close of a file that had lost its name unseen.",
            "cause",
            ["start", "overflow", "timer", "signal", "unseen_writer"],
        );
        let [leads_out, permission, io, too_large] = make.counters(
            "apollonia_failures_total",
            "Files that got no message, by cause. One that is tried again counts once until it can be read.",
            "cause",
            ["leads_out", "permission", "io", "too_large"],
        );
        Self {
            process: Process::register(&make),
            info: make.add(IntGaugeVec::new(
                Opts::new("apollonia_info", "Always 1 once the start is over; the labels say what runs."),
                &["version", "engine", "output"],
            )),
            events: Events { created, moved_to, closed, removed },
            events_coalesced: make.counter(
                "apollonia_events_coalesced_total",
                "Events on a path that was pending already, so that one reading serves them all.",
            ),
            overflows_kernel,
            overflows_pending,
            rescans: Rescans { start, overflow, timer, signal, unseen_writer },
            files_read: make.counter("apollonia_files_read_total", "Files read to their end and hashed."),
            read_bytes: make.counter("apollonia_read_bytes_total", "Bytes of the files that were published."),
            files_unchanged: make.counter(
                "apollonia_files_unchanged_total",
                "Files that were read and are what was confirmed last: no message.",
            ),
            files_gone: make.counter(
                "apollonia_files_gone_total",
                "Files that were renamed or deleted before they could be read. That is no failure.",
            ),
            failures: Failures { leads_out, permission, io, too_large },
            busy: make
                .counter("apollonia_busy_total", "Times that a file was still being written when it was to be read; it is tried again."),
            wants: make.counter(
                "apollonia_wants_total",
                "Times that the service had no descriptor or no memory for a file; it is tried again.",
            ),
            messages_published: make.counter(
                "apollonia_messages_published_total",
                "Messages handed to the output, those repeated after a rejection or a lost connection included.",
            ),
            messages_confirmed: make
                .counter("apollonia_messages_confirmed_total", "Messages that the output has confirmed."),
            messages_nacked: make.counter("apollonia_messages_nacked_total", "Messages that the broker has rejected."),
            messages_returned: make.counter(
                "apollonia_messages_returned_total",
                "Messages that the broker has returned because no queue is bound to the exchange; each try is counted.",
            ),
            reconnects: make.counter(
                "apollonia_reconnects_total",
                "Times that the connection to the broker was lost and made again, see --reconnect-seconds.",
            ),
            pending_files: make.gauge("apollonia_pending_files", "Files between their first event and their confirm."),
            oldest_pending_seconds: make
                .add(Gauge::new("apollonia_oldest_pending_seconds", "Age of the oldest pending file.")),
            in_flight_files: make.gauge("apollonia_in_flight_files", "Files between dispatch and confirm."),
            unconfirmed_messages: make.gauge("apollonia_unconfirmed_messages", "Messages sent and not yet confirmed."),
            unroutable_messages: make.gauge(
                "apollonia_unroutable_messages",
                "Messages that wait until a queue is bound to the exchange; they are published again, and not confirmed before.",
            ),
            known_files: make.gauge("apollonia_known_files", "Files whose last version is remembered."),
            refused_files: make.gauge(
                "apollonia_refused_files",
                "Files that exist and cannot be read now; each is tried again until it can be.",
            ),
            watched_directories: make.gauge("apollonia_watched_directories", "Directories that are watched."),
            unwatched_directories: make.gauge(
                "apollonia_unwatched_directories",
                "Directories without a watch, or that cannot be entered or listed now: they are rescanned from time to time.",
            ),
            broker_connected: make.gauge("apollonia_broker_connected", "1 while there is a connection to the broker."),
            broker_blocked: make
                .gauge("apollonia_broker_blocked", "1 while the broker takes no messages (an alarm of its own)."),
            ready: make.gauge(
                "apollonia_ready",
                "1 while what lands can be delivered: started, broker connected and not blocked, a queue bound, directories readable.",
            ),
            ledger_rows: make.gauge("apollonia_ledger_rows", "File versions in the ledger."),
            ledger_bytes: make.gauge("apollonia_ledger_bytes", "Size of the ledger's database."),
            ledger_waiting_rows: make.gauge("apollonia_ledger_waiting_rows", "Rows not yet written to the ledger."),
            ledger_failures: make
                .counter("apollonia_ledger_failures_total", "Times that the ledger could not be written."),
            log_lines_dropped: make.counter(
                "apollonia_log_lines_dropped_total",
                "Log lines that standard error did not take: it is full and not read, or gone.",
            ),
            stage_stalled_seconds: make.add(IntGaugeVec::new(
                Opts::new(
                    "apollonia_stage_stalled_seconds",
                    "Time since a stage last made progress while work waits; 0 when idle.",
                ),
                &["stage"],
            )),
            read_seconds: make.histogram(
                "apollonia_read_seconds",
                "From opening a file to its digests.",
                &READ_SECONDS,
            ),
            end_to_end_seconds: make.histogram(
                "apollonia_end_to_end_seconds",
                "From reading a file's event to the confirm of its message.",
                &END_TO_END_SECONDS,
            ),
            registry: make.0,
        }
    }
}

impl Metrics {
    /// Counts the outcome of a job, which was reported at the time of day `now`.
    pub fn count(&self, report: &Report, now: Timestamp) {
        match &report.outcome {
            Outcome::Confirmed { version, .. } => {
                self.files_read.inc();
                self.read_bytes.inc_by(version.size);
                self.messages_confirmed.inc();
                self.end_to_end_seconds.observe(now.seconds_since(report.job.seen_at));
            }
            Outcome::Removed => {
                self.messages_confirmed.inc();
                self.end_to_end_seconds.observe(now.seconds_since(report.job.seen_at));
            }
            Outcome::Unchanged { .. } => {
                self.files_read.inc();
                self.files_unchanged.inc();
            }
            Outcome::Unread(Unread::Gone) => self.files_gone.inc(),
            Outcome::Unread(Unread::LeadsOut) => self.failures.leads_out.inc(),
            Outcome::Unread(Unread::Failed(cause)) => self.count_refusal(cause),
            Outcome::Unread(Unread::TooLarge { .. }) => self.failures.too_large.inc(),
            Outcome::Unread(Unread::Busy(_)) => self.busy.inc(),
            Outcome::Unread(Unread::Wanting(_)) => self.wants.inc(),
            Outcome::Unread(Unread::NotRegular | Unread::StaleRow | Unread::Large | Unread::Stopped) => {}
        }
    }

    /// Counts a file or a directory that exists and cannot be read.
    pub fn count_refusal(&self, cause: &io::Error) {
        match cause.kind() {
            io::ErrorKind::PermissionDenied => self.failures.permission.inc(),
            _ => self.failures.io.inc(),
        }
    }

    /// The sums so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            files: self.files_read.get(),
            bytes: self.read_bytes.get(),
            confirmed: self.messages_confirmed.get(),
            failed: self.failures.permission.get() + self.failures.io.get() + self.failures.too_large.get(),
            gone: self.files_gone.get(),
            refused: self.failures.leads_out.get(),
        }
    }
}

/// Kernel events by kind.
#[derive(Debug)]
pub struct Events {
    pub created: IntCounter,
    pub moved_to: IntCounter,
    pub closed: IntCounter,
    pub removed: IntCounter,
}

/// Rescans by their cause.
#[derive(Debug)]
pub struct Rescans {
    pub start: IntCounter,
    pub overflow: IntCounter,
    pub timer: IntCounter,
    pub signal: IntCounter,
    pub unseen_writer: IntCounter,
}

/// Files without a message by their cause.
#[derive(Debug)]
pub struct Failures {
    pub leads_out: IntCounter,
    pub permission: IntCounter,
    pub io: IntCounter,
    pub too_large: IntCounter,
}

/// The sums so far, for the log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Files that were read to their end.
    pub files: u64,
    /// Bytes of the files that were published.
    pub bytes: u64,
    /// Messages that the output has confirmed.
    pub confirmed: u64,
    /// Files that could not be read, or whose message the broker refused for its size.
    pub failed: u64,
    /// Files that were gone before they could be read.
    pub gone: u64,
    /// Links that lead out of the data directory.
    pub refused: u64,
}

impl std::ops::Sub for Totals {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        debug_assert!(before.files <= self.files && before.bytes <= self.bytes, "counters only grow");
        Self {
            files: self.files - before.files,
            bytes: self.bytes - before.bytes,
            confirmed: self.confirmed - before.confirmed,
            failed: self.failed - before.failed,
            gone: self.gone - before.gone,
            refused: self.refused - before.refused,
        }
    }
}
