//! What the service manager and the log are told while the service runs: sd_notify(3), and totals once a minute.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::health::{Status, assess};
use crate::progress::Progress;

/// How often the status line is renewed where no watchdog asks for more.
const STATUS_EVERY: Duration = Duration::from_secs(15);

/// Pings in the time that the watchdog allows: one may be late and the next still counts (sd_watchdog_enabled(3) advises
/// two).
const PINGS: u32 = 3;

/// A watchdog that asks for more than this is given this.
const PING_MIN: Duration = Duration::from_millis(50);

/// How often totals are logged while there is work.
const TOTALS_EVERY: Duration = Duration::from_secs(60);

/// The watch stands and the broker is connected.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The end begins.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells for ever: pings while every stage gets on, the status, and totals.
pub async fn keep_informed(progress: &Progress, stall: Duration) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |allowed| (allowed / PINGS).clamp(PING_MIN, STATUS_EVERY));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    let mut hanging: Vec<&str> = Vec::new();
    let mut totals = progress.metrics.totals();
    let mut totals_at = Instant::now() + TOTALS_EVERY;
    loop {
        ticks.tick().await;
        let (status, summary) = assess(progress, stall);
        if summary != told {
            if status == Status::Unhealthy && !told.starts_with("unhealthy") {
                tracing::error!("{summary}; what it waits for is at fault, or is slower than --stall-seconds");
            }
            tell(&[NotifyState::Status(&summary)]);
            told = summary;
        }
        tell_hanging(progress, stall, &mut hanging);
        if watchdog.is_some() && status != Status::Unhealthy {
            tell(&[NotifyState::Watchdog]);
        }
        if Instant::now() >= totals_at {
            totals_at += TOTALS_EVERY;
            let now = progress.metrics.totals();
            let pending = progress.metrics.pending_files.get();
            if now != totals || pending > 0 {
                let last = now - totals;
                tracing::info!(
                    "in the last minute: {} files read, {} messages confirmed ({} bytes), {} failures, {} gone before they could be read; {pending} pending",
                    last.files,
                    last.confirmed,
                    last.bytes,
                    last.failed,
                    last.gone
                );
            }
            totals = now;
        }
    }
}

/// Logs once of each volume that it has come to hang, and that it answers again.
fn tell_hanging<'a>(progress: &'a Progress, stall: Duration, told: &mut Vec<&'a str>) {
    let hanging: Vec<&str> = progress.hanging(stall).map(|(volume, _)| volume.directories.as_str()).collect();
    for directories in hanging.iter().filter(|directories| !told.contains(directories)) {
        tracing::warn!(
            "nothing could be read in {directories} for {} s, and its files wait: see to its file system; other file systems' directories go on",
            stall.as_secs()
        );
    }
    for directories in told.iter().filter(|directories| !hanging.contains(directories)) {
        tracing::info!("files are read in {directories} again");
    }
    *told = hanging;
}

/// Says it to whoever started us, if they listen.
fn tell(state: &[NotifyState<'_>]) {
    match sd_notify::notify(state) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::debug!("the service manager was not told {state:?}: {error}"),
    }
}
