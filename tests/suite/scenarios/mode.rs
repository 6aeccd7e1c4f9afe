//! The ways in which each story is played.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ledger {
    None,
    Kept,
    /// The service is killed while stories are played, and started again.
    Killed,
}

#[derive(Clone, Copy)]
pub struct Mode {
    pub recursive: bool,
    /// Whether the service has time between two steps of a story.
    pub pauses: bool,
    pub ledger: Ledger,
}

impl Mode {
    pub const fn flat(pauses: bool, ledger: Ledger) -> Self {
        Self { recursive: false, pauses, ledger }
    }

    pub const fn recursive(pauses: bool, ledger: Ledger) -> Self {
        Self { recursive: true, pauses, ledger }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.recursive { "recursive" } else { "flat" };
        let pace = if self.pauses { "pauses" } else { "bursts" };
        let ledger = match self.ledger {
            Ledger::None => "no-ledger",
            Ledger::Kept => "ledger",
            Ledger::Killed => "kills",
        };
        write!(to, "{kind}-{pace}-{ledger}")
    }
}
