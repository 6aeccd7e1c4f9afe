//! Files landing in a directory become RabbitMQ messages.
//!
//! Data goes in one direction and meets each module once:
//!
//! ```text
//!  kernel events          jobs                    messages                 confirms        rows
//!  ───────────► watch ──────────► read + hash ───────────────► publish ───────────► watch ─────► ledger
//!               1 thread          N threads,                   1 thread,             what is      1 thread,
//!               pending set,      one ring and one set of      window of             confirmed    many rows a
//!               directory index   registered buffers each      unconfirmed messages  is known     transaction
//! ```
//!
//! | step | module | what it holds |
//! | --- | --- | --- |
//! | event | [`watch`] | inotify, the pending set, the directory index, the look-over |
//! | file | [`read`] | open beneath the root, both read engines, one version or none |
//! | digest | [`hash`] | SHA-256 and XXH3-128 of every chunk while it is in cache |
//! | message | [`message`] | the ten fields, names, times, message ids |
//! | confirm | [`publish`] | the broker, the window of unconfirmed messages, the other outputs |
//! | ledger | [`ledger`] | what was confirmed last for each path, across restarts |
//!
//! [`pipeline`] wires them: it owns every channel, every bound and every thread. [`commands::watch`] and
//! [`commands::scan`] are its two sources of work; [`commands::listen`] shows what arrives. Beside the line stands [`progress`]: every stage
//! writes there how it gets on, and [`control`] tells whoever asks ([`health`], Prometheus, the service manager). [`commands::doctor`] looks at all of it before it runs.
//!
//! One file is in flight under one path at a time, from the moment it is handed to a reader until the
//! broker has confirmed its message. That rule is what keeps a path's messages in order.

#![deny(unsafe_code, missing_docs)]

pub mod error;

pub mod files;
pub mod filter;
pub mod hash;

pub mod address;
pub mod cli;
pub mod config;
pub mod tls;

pub mod job;
pub mod message;

pub mod dispatch;
pub mod mailbox;
pub mod queue;

pub mod health;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod progress;
pub mod signals;
pub mod terminal;

pub mod ledger;
pub mod publish;
pub mod read;
pub mod watch;

pub mod pipeline;

pub mod commands;
pub mod control;
