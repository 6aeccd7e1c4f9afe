//! The harness: a private broker, a consumer, the service as a process, and what tests do to files and file systems.

pub mod broker;
pub mod certificates;
pub mod cgroup;
pub mod consumer;
pub mod control;
pub mod files;
pub mod ledger;
pub mod link;
pub mod message;
pub mod namespaces;
pub mod process;
pub mod queue;
pub mod seccomp;
pub mod service;
pub mod service_manager;
pub mod setup;
pub mod slow_directory;
pub mod streams;
pub mod terminal;
pub mod tree;
pub mod volume;
pub mod wait;
pub mod world;

/// Prints to standard error why a test did nothing, so that nobody takes it for a pass.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
