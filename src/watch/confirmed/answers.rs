//! What the ledger knows of a path, for who asks.

use tokio::sync::oneshot;

use super::Confirmed;
use crate::inquiry::Row;

impl Confirmed {
    /// Asks the ledger's thread for the row of an absolute path; `None` without a ledger.
    pub(in crate::watch) fn row(&self, path: &[u8]) -> Option<oneshot::Receiver<Option<Row>>> {
        self.ledger.as_ref().map(|ledger| ledger.look_up(path))
    }
}
