//! Waiting for what has no notification of its own.

use std::thread;
use std::time::{Duration, Instant};

/// After this long a test fails. It is generous, because only a test that fails waits it out.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between two attempts.
pub const POLL: Duration = Duration::from_millis(10);

/// Repeats `attempt` until it succeeds. Its error describes the present state, for the message of a test that fails.
#[track_caller]
pub fn retry<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match attempt() {
            Ok(result) => return result,
            Err(state) => assert!(Instant::now() < deadline, "{what} did not come within {TIMEOUT:?}:\n{state}"),
        }
        thread::sleep(POLL);
    }
}
