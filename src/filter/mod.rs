//! Which files are published: globs on the path below the data directory, and the names of incomplete files.
//!
//! A file that is not admitted is neither read nor waited for. Its name stays in the directory's index, because a neighbor
//! is any regular file in the directory.

mod glob;

use std::ffi::{OsStr, OsString};

use glob::Pattern;
pub use glob::patterns_of;
use globset::{Candidate, Glob, GlobSet, GlobSetBuilder};

use crate::error::Error;

/// The patterns of names under which common writers keep a file until it is complete and renamed, each with its writers.
pub const PARTIAL: [(&str, &str); 20] = [
    (".*.[0-9A-Za-z][0-9A-Za-z][0-9A-Za-z][0-9A-Za-z][0-9A-Za-z][0-9A-Za-z]", "rsync: six letters or digits"),
    (".~tmp~/", "rsync --delay-updates"),
    (".rsync-partial/", "rsync --partial-dir, by the name in its manual"),
    ("*.part", "Firefox, KDE, yt-dlp"),
    ("*.partial", "rclone"),
    ("*.crdownload", "Chromium"),
    ("*.filepart", "WinSCP"),
    (".syncthing.*.tmp", "Syncthing"),
    (".pureftpd-upload.*", "Pure-FTPd"),
    (".sftpgo-upload.*", "SFTPGo"),
    (".in.*.", "ProFTPD's HiddenStores"),
    (".*.~[0-9a-f]*", "the clients of ownCloud and Nextcloud"),
    ("*.!qB", "qBittorrent"),
    ("*.aria2", "aria2: what it knows of the file beside it"),
    ("*.opdownload", "Opera"),
    (".goutputstream-*", "GLib, and so GNOME's programs"),
    (".nfs*", "NFS clients: deleted, but still open"),
    (".fuse_hidden*", "FUSE: deleted, but still open"),
    ("*~", "backups of Emacs, Vim and others"),
    (".*.swp", "Vim's swap files"),
];

/// The setting's name in a refusal.
const INCLUDE: &str = "--include (INGESTOR_INCLUDE)";

/// The setting's name in a refusal.
const EXCLUDE: &str = "--exclude (INGESTOR_EXCLUDE)";

/// Shortens a pattern of [`PARTIAL`] for people: rsync's six characters become six X.
#[must_use]
pub fn shown(partial: &str) -> String {
    partial.replace("[0-9A-Za-z]", "X")
}

/// Include and exclude globs, compiled once.
#[derive(Debug, Default)]
pub struct Filter {
    /// `None` includes every file.
    include: Option<GlobSet>,
    exclude: GlobSet,
    /// Directories in which no file is admitted.
    closed: GlobSet,
    /// The patterns that exclude, as they were typed, in the order of `exclude`; those of `--ignore-partial` come last.
    excluding: Vec<String>,
    /// How many of them were typed.
    typed: usize,
}

impl Filter {
    /// Compiles the patterns; `ignore_partial` adds [`PARTIAL`] to those that exclude.
    ///
    /// # Errors
    /// [`Error::Usage`], naming the setting, the pattern and what is wrong with it.
    pub fn new(include: &[OsString], exclude: &[OsString], ignore_partial: bool) -> Result<Self, Error> {
        let named = |pattern, setting| Pattern::parse(pattern).map_err(|cause| refused(setting, pattern, &cause));
        let include = include.iter().map(|pattern| named(pattern, INCLUDE)).collect::<Result<Vec<_>, _>>()?;
        let mut excluding: Vec<String> = exclude.iter().map(|pattern| pattern.to_string_lossy().into_owned()).collect();
        let typed = excluding.len();
        let mut exclude = exclude.iter().map(|pattern| named(pattern, EXCLUDE)).collect::<Result<Vec<_>, _>>()?;
        if ignore_partial {
            let partial = PARTIAL.iter().map(|(pattern, _)| named(OsStr::new(*pattern), EXCLUDE));
            exclude.extend(partial.collect::<Result<Vec<_>, _>>()?);
            excluding.extend(PARTIAL.iter().map(|(pattern, _)| shown(pattern)));
        }
        let include = match &include[..] {
            [] => None,
            include => Some(set(include.iter().map(|pattern| &pattern.files), INCLUDE)?),
        };
        Ok(Self {
            include,
            closed: set(exclude.iter().flat_map(|pattern| &pattern.directories), EXCLUDE)?,
            exclude: set(exclude.iter().map(|pattern| &pattern.files), EXCLUDE)?,
            excluding,
            typed,
        })
    }

    /// Whether the file at this path below the data directory is published.
    #[must_use]
    pub fn admits(&self, below: &[u8]) -> bool {
        if self.include.is_none() && self.exclude.is_empty() {
            return true;
        }
        let path = Candidate::from_bytes(below);
        !self.exclude.is_match_candidate(&path)
            && self.include.as_ref().is_none_or(|include| include.is_match_candidate(&path))
    }

    /// Why the file at this path below the data directory is not published, in words, if it is the filter that leaves it
    /// out: which glob does, by its flag.
    #[must_use]
    pub fn leaves_out(&self, below: &[u8]) -> Option<String> {
        let path = Candidate::from_bytes(below);
        if let Some(&first) = self.exclude.matches_candidate(&path).first() {
            let pattern = self.excluding.get(first).map_or("", String::as_str);
            let flag = if first < self.typed { "--exclude" } else { "--ignore-partial" };
            return Some(format!("{flag} leaves it out by the glob {pattern:?}"));
        }
        let included = self.include.as_ref().is_none_or(|include| include.is_match_candidate(&path));
        (!included).then(|| "none of the globs of --include matches it".to_owned())
    }

    /// Whether there are patterns that exclude whole directories.
    #[must_use]
    pub fn closes(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Whether the directory at this path below the data directory can hold admitted files, judged by the patterns that
    /// exclude whole directories. Other directories need not be listed or watched.
    #[must_use]
    pub fn enters(&self, below: &[u8]) -> bool {
        self.closed.is_empty() || !self.closed.is_match_candidate(&Candidate::from_bytes(below))
    }
}

fn refused(setting: &str, pattern: &OsStr, cause: &str) -> Error {
    Error::usage(format!("{setting}: {pattern:?} cannot be used: {cause}"), "see --help")
}

fn set<'a>(globs: impl Iterator<Item = &'a Glob>, setting: &str) -> Result<GlobSet, Error> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob.clone());
    }
    builder.build().map_err(|error| Error::usage(format!("{setting}: cannot be used: {error}"), "see --help"))
}

#[cfg(test)]
mod tests;
