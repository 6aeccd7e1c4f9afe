//! A file against its row. Pure.

use super::totals::Kind;
use crate::files::version::{Timestamp, Version};
use crate::inquiry::Row;

/// How a file compares with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// Its row is of this version, or of one that differs in metadata alone.
    Same { same_version: bool },
    /// It does not.
    Differs(Kind),
    /// It has changed so lately that the ledger need not know it yet.
    Early,
}

/// Compares a version on the disk with its row. What has changed from `early` on is not judged: the service may be about to
/// publish it, or may have done so after the ledger was copied.
pub(super) fn judge(row: Option<&Row>, version: &Version, early: Timestamp) -> Judged {
    let kind = match row {
        None => Kind::NeverConfirmed,
        Some(row) if row.void => Kind::Changed,
        Some(row) if row.version == *version => return Judged::Same { same_version: true },
        // The content decides, for the service as well.
        Some(row) if Version { changed: version.changed, ..row.version } == *version => {
            return Judged::Same { same_version: false };
        }
        Some(_) => Kind::Changed,
    };
    if is_early(version.changed, early) { Judged::Early } else { Judged::Differs(kind) }
}

/// Whether a change is not judged.
pub(super) fn is_early(changed: Timestamp, early: Timestamp) -> bool {
    (changed.seconds, changed.nanoseconds) >= (early.seconds, early.nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_judged_by_its_version_and_its_age() {
        let stamp = |seconds| Timestamp { seconds, nanoseconds: 0 };
        let version = Version { inode: 1, size: 2, modified: stamp(3), changed: stamp(4) };
        let row = Row { version, digests: None, id: None, void: false };
        let judged = |row: Option<Row>, version: Version| judge(row.as_ref(), &version, stamp(90));
        assert_eq!(judged(Some(row), version), Judged::Same { same_version: true });
        assert_eq!(judged(Some(row), Version { changed: stamp(9), ..version }), Judged::Same { same_version: false });
        assert_eq!(judged(Some(row), Version { size: 3, ..version }), Judged::Differs(Kind::Changed));
        assert_eq!(judged(Some(Row { void: true, ..row }), version), Judged::Differs(Kind::Changed));
        assert_eq!(judged(None, version), Judged::Differs(Kind::NeverConfirmed));
        for (changed, early) in [(89, false), (90, true), (200, true)] {
            let young = Version { changed: stamp(changed), modified: stamp(7), ..version };
            assert_eq!(judged(None, young) == Judged::Early, early, "{changed}");
            assert_eq!(judged(Some(row), young) == Judged::Early, early, "{changed}");
        }
    }
}
