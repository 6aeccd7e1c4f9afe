//! Listing a directory against what is known of it: at start, after an overflow, and on a timer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;

use super::tree::Origin;
use crate::files::directory::{Directory, DirectoryId};
use crate::files::names::Name;

/// Pause between two look-overs that events ask for; doubles to the longest while they keep asking.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Where look-overs stand: that of the whole tree, and those of single directories that are new or have no watch.
pub struct Rescan {
    /// One more of the whole tree is needed once this one is through.
    pub needed: bool,
    /// That of the whole tree is under way.
    pub whole: bool,
    /// Directories to be listed. `true`: and those below them.
    pub to_list: VecDeque<(DirectoryId, bool)>,
    /// Listed names that are not compared yet.
    pub to_compare: VecDeque<Compare>,
    /// Files found other than they are known.
    pub found: usize,
    /// Of those, the ones whose content decides whether they are.
    pub in_question: usize,
    /// Files compared, those that the filter leaves out aside.
    pub compared: usize,
    /// It is the start's.
    pub first: bool,
    /// What is known counts as well: `--catch-up all`.
    pub everything: bool,
    /// When the last one of the whole tree began.
    began: Option<Instant>,
    not_before: Instant,
    pause: Duration,
}

/// What is left of one directory.
pub struct Compare {
    /// The directory.
    pub id: DirectoryId,
    /// Its names.
    pub left: vec::IntoIter<Name>,
    /// How they came there.
    pub origin: Origin,
}

impl Rescan {
    /// Nothing is asked for.
    #[must_use]
    pub fn new() -> Self {
        Self {
            needed: false,
            whole: false,
            to_list: VecDeque::new(),
            to_compare: VecDeque::new(),
            found: 0,
            in_question: 0,
            compared: 0,
            first: true,
            everything: false,
            began: None,
            not_before: Instant::now(),
            pause: PAUSE_MIN,
        }
    }

    /// Whether there is something to list or to compare.
    #[must_use]
    pub fn running(&self) -> bool {
        !self.to_list.is_empty() || !self.to_compare.is_empty()
    }

    /// Asked for by an event: after a pause that grows while they keep asking.
    pub fn ask(&mut self, now: Instant) {
        if self.needed {
            return;
        }
        self.needed = true;
        match self.began {
            Some(began) if now.saturating_duration_since(began) <= PAUSE_MAX => {
                self.not_before = began + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
            _ => {
                self.not_before = now;
                self.pause = PAUSE_MIN;
            }
        }
    }

    /// Asked for by the timer.
    pub fn ask_now(&mut self, now: Instant) {
        self.needed = true;
        self.not_before = now;
    }

    /// When that of the whole tree has to begin.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        (self.needed && !self.whole).then_some(self.not_before)
    }

    /// That of the whole tree begins.
    pub fn begin(&mut self, roots: &[Arc<Directory>], now: Instant) {
        (self.needed, self.whole, self.everything) = (false, true, false);
        (self.found, self.in_question, self.compared) = (0, 0, 0);
        self.began = Some(now);
        self.to_list.extend(roots.iter().map(|root| (root.id(), true)));
    }
}

impl Default for Rescan {
    fn default() -> Self {
        Self::new()
    }
}
