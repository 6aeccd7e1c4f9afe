//! A pause that grows. Pure.

use std::time::Duration;

/// A pause that doubles each time, up to a limit.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    pause: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, pause: min }
    }

    /// The next pause.
    pub fn advance(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.max);
        pause
    }

    /// The next pause is the shortest again.
    pub fn reset(&mut self) {
        self.pause = self.min;
    }
}
