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
use crate::terminal::BAR;

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// A bar, or nothing where nobody would see it.
pub struct Bar {
    bar: Option<ProgressBar>,
    files: u64,
    ended: Arc<AtomicBool>,
}

impl Bar {
    /// Shows a bar; what is ahead is counted beside the work, so that the work need not wait for it.
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
        let (roots, filter, counted, told) = (roots.to_vec(), Arc::clone(filter), bar.clone(), Arc::clone(&ended));
        // Without the thread there is a bar without an end, no more.
        let _ = thread::Builder::new()
            .name("count".to_owned())
            .spawn(move || count_ahead(&roots, &filter, recursive, &counted, &told));
        Self { bar: Some(bar), files: 0, ended }
    }

    /// One more file, of this size, is through.
    pub fn advance(&mut self, bytes: u64) {
        self.files += 1;
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
            if self.files.is_multiple_of(64) || bytes > 1 << 20 {
                bar.set_message(self.files.to_string());
            }
        }
    }

    /// Takes the bar away: the closing line says it all.
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
            // What cannot be looked at is the scan's to tell of.
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
