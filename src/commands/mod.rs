//! The commands: each puts together what it needs.

pub mod doctor;
pub mod health;
pub mod listen;
pub mod progress_bar;
pub mod roots;
pub mod scan;
pub mod watch;
