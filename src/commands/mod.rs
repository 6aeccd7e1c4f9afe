//! The commands. Each checks the settings that it uses, starts logging, and puts together what it needs.

pub mod completions;
pub mod doctor;
pub mod health;
pub mod listen;
pub mod process;
mod progress_bar;
mod request;
pub(crate) mod roots;
mod runtime;
pub mod scan;
pub mod status;
pub mod verify;
mod walk;
pub mod watch;
