//! What was confirmed at paths whose directories were found to have left them, while events are lost.
//!
//! Pure: no I/O. After IN_Q_OVERFLOW a rescan can find another directory at a path than the tree has there, and below it
//! a directory that is at its path still or again. Its files were published at these paths already, under the directory
//! above that the tree took for the present one. So what was confirmed for them holds, and they are not published again. It
//! is kept until the rescan ends, and not for a directory that comes from elsewhere in the tree: that one was renamed.

use crate::files::names::{Map, Name};
use crate::job::Known;

/// Names that are kept at most, some 100 bytes each. The files of what goes beyond it are published again.
const NAMES_MAX: usize = 1 << 16;

/// See the module.
#[derive(Default)]
pub(super) struct Departed {
    /// By the directory's absolute path, which ends in `/`.
    by_directory: Map<Vec<u8>, Map<Name, Known>>,
    names: usize,
}

impl Departed {
    /// Keeps what was confirmed in a directory that left its path. The rows of these files are deleted.
    pub(super) fn keep(&mut self, directory: &[u8], known: &Map<Name, Known>) {
        self.take(directory);
        if known.is_empty() || self.names + known.len() > NAMES_MAX {
            return;
        }
        self.names += known.len();
        let known = known.iter().map(|(name, known)| (Name::clone(name), known.rowless())).collect();
        self.by_directory.insert(directory.to_vec(), known);
    }

    /// Takes out what was confirmed at a directory's path.
    pub(super) fn take(&mut self, directory: &[u8]) -> Map<Name, Known> {
        let known = self.by_directory.remove(directory).unwrap_or_default();
        self.names -= known.len();
        known
    }

    /// Another version was published at this path.
    pub(super) fn forget(&mut self, directory: &[u8], name: &Name) {
        if let Some(known) = self.by_directory.get_mut(directory)
            && known.remove(name).is_some()
        {
            self.names -= 1;
        }
    }

    /// Forgets all below a path, which ends in `/`.
    pub(super) fn forget_below(&mut self, directory: &[u8]) {
        let names = &mut self.names;
        self.by_directory.retain(|path, known| {
            let stays = !path.starts_with(directory);
            *names -= if stays { 0 } else { known.len() };
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_can_be_taken_once() {
        let known = |count: usize| -> Map<Name, Known> {
            (0..count).map(|number| (number.to_string().into_bytes().into(), Known::PUBLISHED)).collect()
        };
        let mut departed = Departed::default();
        departed.keep(b"/a/", &known(NAMES_MAX - 2));
        departed.keep(b"/a/b/", &known(2));
        departed.keep(b"/c/", &known(1));
        assert!(departed.take(b"/c/").is_empty(), "there is no room for it");
        departed.forget(b"/a/b/", &b"0"[..].into());
        departed.keep(b"/c/", &known(1));
        assert_eq!(departed.take(b"/c/").into_values().collect::<Vec<_>>(), [Known::PUBLISHED.rowless()]);
        assert!(departed.take(b"/c/").is_empty());
        departed.forget_below(b"/a/b/");
        assert_eq!((departed.names, departed.take(b"/a/b/").len()), (NAMES_MAX - 2, 0));
        departed.forget_below(b"/");
        assert_eq!((departed.names, departed.by_directory.len()), (0, 0));
    }
}
