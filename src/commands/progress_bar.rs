//! The progress bar of `scan`, on standard error when that is a terminal.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::files::listing::{FileStat, list, look, path_in};
use crate::files::root::Root;
use crate::filter::Filter;
use crate::streams::stderr::BAR;

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// A progress bar, or none where standard error is no terminal.
pub struct Bar {
    bar: Option<ProgressBar>,
    files: u64,
    ended: Arc<AtomicBool>,
}

impl Bar {
    /// Shows the bar. A thread of its own counts the bytes ahead, so that the scan need not wait for them.
    #[must_use]
    pub fn start(roots: &[Arc<Root>], filter: &Arc<Filter>, recursive: bool) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        if !io::stderr().is_terminal() {
            return Self { bar: None, files: 0, ended };
        }
        let bar = ProgressBar::new(0);
        let style = "{bar:30} {msg} files  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        let _ = BAR.set(bar.clone());
        let (roots, filter, counted, stop) = (roots.to_vec(), Arc::clone(filter), bar.clone(), Arc::clone(&ended));
        // Without the thread the bar only has no end.
        let _ = thread::Builder::new()
            .name("count".to_owned())
            .spawn(move || count_ahead(&roots, &filter, recursive, &counted, &stop));
        Self { bar: Some(bar), files: 0, ended }
    }

    /// Counts a file of this size as published.
    pub fn advance(&mut self, bytes: u64) {
        self.files += 1;
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
            if self.files.is_multiple_of(64) || bytes > 1 << 20 {
                bar.set_message(self.files.to_string());
            }
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

fn count_ahead(roots: &[Arc<Root>], filter: &Filter, recursive: bool, bar: &ProgressBar, ended: &AtomicBool) {
    let mut directories: Vec<(&Root, Vec<u8>)> = roots.iter().map(|root| (&**root, Vec::new())).collect();
    while let Some((root, below)) = directories.pop() {
        let Ok(listing) = list(root, &below) else { continue };
        for found in listing.files {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let file = path_in(&below, &found.name);
            if !filter.admits(&file) {
                continue;
            }
            // The scan itself reports files that cannot be read.
            if let Ok(Some(FileStat { version, regular: true, .. })) = look(root, &file) {
                bar.inc_length(version.size);
            }
        }
        if recursive {
            let further = listing.directories.iter().map(|name| path_in(&below, name));
            directories.extend(further.filter(|below| filter.enters(below)).map(|below| (root, below)));
        }
    }
}
