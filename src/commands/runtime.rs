//! The runtime of a command that speaks with a broker or a service.

use tokio::runtime::{Builder, Runtime};

use crate::error::Error;

/// A runtime on the thread that blocks on it.
///
/// # Errors
/// [`Error::System`] when descriptors are short.
pub(super) fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread().enable_all().build().map_err(|cause| Error::system("cannot start a runtime", cause))
}
