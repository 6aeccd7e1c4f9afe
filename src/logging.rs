//! Log lines on standard error, as text or JSON.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::cli::LogFormat;
use crate::error::Error;
use crate::progress::AroundTheBar;

/// Set once log lines go out; before that a failure is printed plainly.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts logging. The libraries below us speak only when tracing was asked for: the AMQP client would
/// otherwise print whole messages, and a failure of theirs reaches the user as our one error line.
pub fn start(level: LevelFilter, format: LogFormat) {
    let libraries = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let filter = Targets::new().with_default(libraries).with_target("apollonia_ingestor", level);
    let lines = fmt::layer().with_writer(|| AroundTheBar).with_target(false);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        STARTED.store(true, Ordering::Relaxed);
    }
}

/// Says in one line why the command failed.
pub fn failure(error: &Error) {
    if STARTED.load(Ordering::Relaxed) {
        tracing::error!("{error}");
    } else {
        eprintln!("error: {error}");
    }
}
