//! The progress bar of `scan` and `verify`, on standard error when that is a terminal.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::walk::Start;
use crate::files::listing::{FileStat, list, look, path_in};
use crate::files::root::Root;
use crate::filter::Filter;
use crate::streams::terminal::{BAR, Screen, columns, is_dumb};

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// How often it is drawn in a second at most, however many files there are.
const DRAWS: u8 = 20;

/// The bar itself is between so many columns wide: fewer show nothing, more say no more.
const BAR_COLUMNS: (usize, usize) = (6, 30);

/// A progress bar, or none where standard error is no terminal, or one that takes no control sequences.
pub struct Bar {
    bar: Option<ProgressBar>,
    files: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Bar {
    /// Shows the bar. A thread of its own counts the bytes ahead, so that the scan need not wait for them.
    #[must_use]
    pub(super) fn start(starts: &[Start], filter: &Arc<Filter>, recursive: bool) -> Self {
        let (files, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        if !io::stderr().is_terminal() || is_dumb() {
            return Self { bar: None, files, ended };
        }
        let bar = ProgressBar::with_draw_target(
            Some(0),
            ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), DRAWS),
        );
        if let Ok(style) = ProgressStyle::with_template("{line}") {
            let files = Arc::clone(&files);
            bar.set_style(style.with_key("line", move |state: &ProgressState, line: &mut dyn Write| {
                let seen = Seen::of(state, files.load(Ordering::Relaxed));
                // The bar's writer takes all.
                let _ = line.write_str(&seen.line(columns(io::stderr())));
            }));
        }
        bar.enable_steady_tick(TICK);
        let _ = BAR.set(bar.clone());
        let directories = starts.iter().map(|start| (Arc::clone(&start.root), start.below.clone())).collect();
        let (filter, counted, stop) = (Arc::clone(filter), bar.clone(), Arc::clone(&ended));
        // Without the thread the bar only has no end.
        let _ = thread::Builder::new()
            .name("count".to_owned())
            .spawn(move || count_ahead(directories, &filter, recursive, &counted, &stop));
        Self { bar: Some(bar), files, ended }
    }

    /// Counts a file of this size as published.
    pub fn advance(&mut self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// Removes the bar, because the last log line has the totals.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What the bar shows at one moment.
struct Seen {
    files: u64,
    bytes: u64,
    total: u64,
    bytes_a_second: f64,
    left: Duration,
}

impl Seen {
    fn of(state: &ProgressState, files: u64) -> Self {
        Self {
            files,
            bytes: state.pos(),
            total: state.len().unwrap_or(0),
            bytes_a_second: state.per_sec(),
            left: state.eta(),
        }
    }

    /// The line for a terminal so many columns wide: all that there is to say, and what matters less goes first where it is
    /// narrow. The last column stays free, because some terminals begin a new line behind it.
    fn line(&self, columns: usize) -> String {
        let room = columns.saturating_sub(1);
        let files = format!("{} files", self.files);
        let bytes = format!("{}/{}", DecimalBytes(self.bytes), DecimalBytes(self.total));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is shown roughly")]
        let rate = format!("{}/s", DecimalBytes(self.bytes_a_second as u64));
        let left = format!("{:#} left", HumanDuration(self.left));
        let lines: [&[&str]; 5] =
            [&[&files, &bytes, &rate, &left], &[&files, &bytes, &left], &[&files, &bytes], &[&bytes], &[&files]];
        let fitting = lines.into_iter().map(|parts| parts.join("  ")).find(|line| line.chars().count() <= room);
        let Some(line) = fitting else { return String::new() };
        match self.bar(room - line.chars().count()) {
            Some(bar) => format!("{bar} {line}"),
            None => line,
        }
    }

    /// The bar in so much room, with the space behind it.
    fn bar(&self, room: usize) -> Option<String> {
        let (least, most) = BAR_COLUMNS;
        let width = room.saturating_sub(1).min(most);
        let filled = u128::from(self.bytes.min(self.total)) * width as u128 / u128::from(self.total.max(1));
        let filled = usize::try_from(filled).unwrap_or(width);
        (width >= least).then(|| "█".repeat(filled) + &"░".repeat(width - filled))
    }
}

fn count_ahead(
    mut directories: Vec<(Arc<Root>, Vec<u8>)>,
    filter: &Filter,
    recursive: bool,
    bar: &ProgressBar,
    ended: &AtomicBool,
) {
    while let Some((root, below)) = directories.pop() {
        let Ok(listing) = list(&root, &below) else { continue };
        for found in listing.files {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let file = path_in(&below, &found.name);
            if !filter.admits(&file) {
                continue;
            }
            // The scan itself reports files that cannot be read.
            if let Ok(Some(FileStat { version, regular: true, .. })) = look(&root, &file) {
                bar.inc_length(version.size);
            }
        }
        if recursive {
            let further = listing.directories.iter().map(|name| path_in(&below, name));
            directories.extend(further.filter(|below| filter.enters(below)).map(|below| (Arc::clone(&root), below)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_every_terminal_and_loses_what_matters_less() {
        let largest = Seen {
            files: 123_456_789,
            bytes: 987_650_000_000,
            total: 987_660_000_000,
            bytes_a_second: 987_650_000.0,
            left: Duration::from_secs(3599),
        };
        for columns in 0..200 {
            let line = largest.line(columns);
            assert!(line.chars().count() < columns.max(1), "{columns}: {line}");
        }
        let usual = Seen { files: 12_345, bytes: 12_340_000_000, total: 123_450_000_000, ..largest };
        for part in ["12345 files", "12.34 GB/123.45 GB", "987.65 MB/s", "left"] {
            assert!(usual.line(60).contains(part), "{part}: {}", usual.line(60));
        }
        assert!(usual.line(80).starts_with('█') || usual.line(80).starts_with('░'), "{}", usual.line(80));
        assert_eq!(usual.line(100).chars().filter(|it| "█░".contains(*it)).count(), BAR_COLUMNS.1);
        assert_eq!(usual.line(38), "12345 files  12.34 GB/123.45 GB");
        assert_eq!(usual.line(12), "12345 files");
        assert_eq!(usual.line(3), "");
    }
}
