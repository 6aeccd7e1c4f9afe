//! Renames of files whose first half has been read: the kernel reports a rename as IN_MOVED_FROM and IN_MOVED_TO, with one
//! number for both (inotify(7), `cookie`).
//!
//! Pure. The halves come one after the other, with few other events between them. The first half of a rename out of the
//! tree has no second one: it is dropped when [`RENAMES_MAX`] others have come after it.

use std::collections::VecDeque;
use std::sync::Arc;

/// Renames that may have begun; some 200 bytes each.
const RENAMES_MAX: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Renames(VecDeque<(u32, Arc<[u8]>)>);

impl Renames {
    /// The first half was read: the absolute path that the file had.
    pub(crate) fn begin(&mut self, cookie: u32, path: Vec<u8>) {
        if self.0.len() == RENAMES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((cookie, path.into()));
    }

    /// The second half was read. Returns the path of the first, if that is known.
    pub(crate) fn end(&mut self, cookie: u32) -> Option<Arc<[u8]>> {
        let at = self.0.iter().rposition(|(begun, _)| *begun == cookie)?;
        self.0.remove(at).map(|(_, path)| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_ends_once_and_those_out_of_the_tree_are_dropped() {
        let mut renames = Renames::default();
        renames.begin(0, b"/data/out".to_vec());
        renames.begin(1, b"/data/a".to_vec());
        renames.begin(2, b"/data/b".to_vec());
        assert_eq!(renames.end(1).as_deref(), Some(&b"/data/a"[..]));
        assert_eq!((renames.end(1), renames.end(3)), (None, None));
        (3..=2 + RENAMES_MAX as u32).for_each(|cookie| renames.begin(cookie, Vec::new()));
        assert_eq!(renames.0.len(), RENAMES_MAX);
        assert_eq!(renames.end(0), None);
    }
}
