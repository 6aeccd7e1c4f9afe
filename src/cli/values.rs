//! The settings that are a choice of words.

use clap::ValueEnum;

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// The broker.
    Amqp,
    /// Standard output, one JSON object a line.
    Stdout,
    /// Nowhere, for measuring all but the broker.
    None,
}

/// What to do with files that are there when the watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CatchUp {
    /// Leave them until they change.
    None,
    /// Publish those whose version the ledger does not hold.
    Changed,
    /// Publish them all.
    All,
    /// Enter them in the ledger as known, and publish none of them.
    Baseline,
}

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadEngine {
    /// io_uring where the kernel allows it, else blocking.
    Auto,
    /// io_uring, or fail.
    #[value(name = "io_uring")]
    IoUring,
    /// Plain reads.
    Blocking,
}

/// What to do with a message that the broker returns because no queue is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unroutable {
    /// Publish it again, after growing pauses, until a queue is bound.
    Wait,
    /// Count it as confirmed, and warn at most once a minute.
    Warn,
    /// End with an error.
    Fail,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "WARNING")]
    Warn,
    Error,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A shell that completes command lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}
