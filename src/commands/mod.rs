//! The commands. Each checks the settings that it uses, starts logging, and puts together what it needs.

pub mod doctor;
pub mod health;
pub mod listen;
mod progress_bar;
pub(crate) mod roots;
pub mod scan;
pub mod watch;
