//! Opening the data directories of a service side by side: one that does not answer keeps no other from being watched.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{Opening, Root, join, open_directory, real_path, refuse_overlaps};
use crate::error::Error;

/// How long a start waits for data directories, to be opened and then to be listed, once one is: a file system that is slow or
/// hangs delays its own files alone (contract 4.7).
pub const PATIENCE: Duration = Duration::from_secs(5);

/// As [`open_roots`](super::open_roots), but one that has not answered within [`PATIENCE`], while another has, is opened
/// meanwhile. `first`: how long the first answer is waited for.
///
/// # Errors
/// As [`open_roots`](super::open_roots); [`Error::Threads`].
pub fn open_roots_in_time(paths: &[PathBuf], first: Duration) -> Result<Vec<Root>, Error> {
    let (sender, answers) = mpsc::channel();
    let ask = |(number, path): (usize, &PathBuf)| Asked::ask(path, number, sender.clone());
    let asked = paths.iter().enumerate().map(ask).collect::<Result<Vec<_>, _>>()?;
    drop(sender);
    let until = Instant::now() + PATIENCE;
    let (mut answered, mut left) = (vec![false; paths.len()], first);
    while let Ok(number) = answers.recv_timeout(left) {
        answered[number] = true;
        left = until.saturating_duration_since(Instant::now());
    }
    let roots = asked.into_iter().zip(answered).map(|(asked, answered)| asked.root(answered));
    refuse_overlaps(paths, roots.collect::<Result<_, _>>()?)
}

/// A data directory on its way from the thread that opens it.
struct Asked {
    path: PathBuf,
    /// The real path, which may be known long before the directory is open.
    real: Arc<OnceLock<PathBuf>>,
    dir: Arc<OnceLock<OwnedFd>>,
    opening: Opening,
}

impl Asked {
    /// Starts to open a data directory. `answered` is told its number when that has ended.
    fn ask(path: &Path, number: usize, answered: mpsc::Sender<usize>) -> Result<Self, Error> {
        let (path, real, dir) = (path.to_owned(), Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let (asked, its_real, its_dir) = (path.clone(), Arc::clone(&real), Arc::clone(&dir));
        let open = move || {
            let opened = real_path(&asked).and_then(|real| {
                // Only this thread sets the two.
                let _ = its_real.set(real.clone());
                let _ = its_dir.set(open_directory(&asked, &real)?);
                Ok(real)
            });
            // The main thread may wait no more.
            let _ = answered.send(number);
            opened
        };
        let opening = thread::Builder::new().name("open".to_owned()).spawn(open);
        let opening =
            opening.map_err(|cause| Error::Threads { what: "a thread that opens a data directory", cause })?;
        Ok(Self { path, real, dir, opening })
    }

    /// The data directory: open if that has ended, else to be opened meanwhile.
    fn root(self, answered: bool) -> Result<Root, Error> {
        let Self { path, real, dir, opening } = self;
        if answered {
            let real = join(opening)?;
            return Ok(Root::opened_by(None, dir, real.as_os_str().as_bytes()));
        }
        let real = real.get().cloned().or_else(|| std::path::absolute(&path).ok()).unwrap_or(path);
        Ok(Root::opened_by(Some(opening), dir, real.as_os_str().as_bytes()))
    }
}
