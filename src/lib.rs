//! Files landing in a directory become RabbitMQ messages.
//!
//! Work goes around once: from the watch through the readers and the publisher back to the watch, and from there to disk.
//!
//! ```text
//!  inotify       jobs                 messages               reports              rows
//!  ──────► watch ────► read + hash ────────────► publish ───────────► watch ────────► ledger
//!          1 thread    N threads, one ring       1 thread, a          through its      1 thread,
//!          a volume,   and registered            window of            mailbox          many rows a
//!          pending     buffers each              unconfirmed                           transaction
//!          set                                   messages
//! ```
//!
//! | stage | module | what it does |
//! | --- | --- | --- |
//! | watch | `watch` | takes inotify events, coalesces them in the pending set, rescans, dispatches jobs, acts on reports |
//! | read | `read`, `hash` | opens a file beneath its data directory, hashes one version of it, composes the `message` |
//! | publish | `publish` | publishes within the window of unconfirmed messages, repeats what was rejected or returned |
//! | ledger | `ledger` | keeps on disk what was confirmed last for each path |
//!
//! A job is in flight from its dispatch to its report, and no path has two: that keeps a path's messages in order. The
//! number of jobs in flight is bounded (`dispatch`), and every channel behind has room for all of them (`queue` to the
//! readers, a tokio channel to the publisher, the `mailbox` back to the watch): so no stage waits for a full channel.
//! The main thread waits for a signal or a failure. Two more serve the control socket with the service manager (`control`,
//! `notify`), and signals (`signals`).
//!
//! `pipeline` starts the threads and hands each its ends of the channels. [`commands`] holds the two sources of jobs, `watch`
//! and `scan`, and what is asked beside them: `listen`, `health`, `doctor`. Every stage writes its progress to `progress` and
//! its numbers to `metrics`; `health` judges them.
//!
//! The modules are listed in groups from the ground up: a module imports from the groups above it and from its own.
//! [docs/ARCHITECTURE.md](../docs/ARCHITECTURE.md) is the long form: the layers as a table, the bounds of every channel, one
//! file's way through the code, and the five rules.

#![deny(unsafe_code, missing_docs)]

// Ground: what may be shown of a text, advice, errors, memory, the standard streams.
mod advice;
pub mod error;
mod memory;
mod shown;
mod streams;

// Files, digests, and the way of a message at the broker.
mod files;
mod filter;
mod hash;
mod routing;

// Settings.
mod address;
pub mod cli;
mod config;
mod tls;

// What travels: a job with its outcome, a message, a question, and the channels between the stages.
mod inquiry;
mod job;
mod mailbox;
mod message;
mod pace;
mod queue;

// Reports: numbers, progress, log lines, the verdict, the service manager.
mod health;
mod logging;
mod metrics;
mod notify;
mod progress;
mod status;

// The service around the stages: bounds of what is in flight, signals, the control socket.
mod control;
mod dispatch;
mod signals;

// The stages.
mod ledger;
mod publish;
mod read;
mod watch;

// The wiring, and the commands.
pub mod commands;
mod pipeline;

/// What the benches measure. Nothing else uses the crate from outside, and none of this is an interface.
#[doc(hidden)]
pub mod bench {
    pub use crate::commands::roots::prepare;
    pub use crate::config::Config;
    pub use crate::dispatch::{Dispatcher, Stages};
    pub use crate::files::directory::{Directory, DirectoryId};
    pub use crate::files::listing::{Found, list};
    pub use crate::files::names::{NEIGHBORS_MAX, Name, Names, stem};
    pub use crate::files::root::Root;
    pub use crate::files::version::{Timestamp, Version};
    pub use crate::filter::Filter;
    pub use crate::hash::{Digests, Hasher, Xxh128Stream, lanes, scheduler};
    pub use crate::job::{Job, Outcome};
    pub use crate::mailbox::{Notice, Reports};
    pub use crate::message::{EventType, Message, Paths};
    pub use crate::pipeline::start_for_one_source as start_pipeline;
    pub use crate::read::buffer::CHUNK_BYTES;
    pub use crate::read::limits::FILES_IN_FLIGHT;
    pub use crate::read::verify::Before;
    pub use crate::watch::pending::{Change, Due, PENDING_MAX, Pending};
}
