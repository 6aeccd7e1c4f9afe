//! The watch: kernel events into the pending set, batches of jobs out of it, confirms back into what is known.
//!
//! Each volume has a watch of its own, in a thread that owns all of this and never waits for a file or for the broker. It reads the
//! kernel's queued events, then the pipeline's reports, then dispatches as large a batch as there is room for. A batch is
//! whatever came in while the last one was being handled: one file when idle, more under load. It does look at names and
//! directories itself, so a file system that hangs holds up its own watch, and no other. See [`Watchers`] for what the
//! watches have in common.

mod confirmed;
mod departed;
pub mod hard_links;
pub mod inotify;
pub mod links;
pub mod pending;
mod renames;
pub mod rescan;
pub mod retry;
mod root_checks;
mod schedule;
mod starting;
mod state;
mod target_directories;
pub mod tree;
mod unseen;
mod watcher;
mod watchers;

pub use watchers::{Watchers, watches};
