//! Operations of the ring that tokio-uring does not have: openat2 beneath a directory, and the cancellation of all.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;
use tokio_uring::fs::File;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use crate::files::root::{OPEN_FLAGS, OPEN_RESOLVE, Root};
use crate::read::readers::CPath;

/// What the kernel reads while it opens a file.
pub(super) struct OpenRequest {
    pub(super) path: CPath,
    how: types::OpenHow,
}

impl Default for OpenRequest {
    fn default() -> Self {
        let how = types::OpenHow::new().flags(OPEN_FLAGS.bits().into()).resolve(OPEN_RESOLVE.bits());
        Self { path: CPath::default(), how }
    }
}

/// Opens a file below a data directory through the ring.
pub(super) async fn open(root: &Root, request: Box<OpenRequest>) -> (Result<OwnedFd, Errno>, Box<OpenRequest>) {
    let directory = types::Fd(root.as_fd().as_raw_fd());
    let entry = opcode::OpenAt2::new(directory, request.path.as_ptr(), &raw const request.how).build();
    // SAFETY of the entry's pointers: path and `how` are in a box that the operation owns until its completion has been
    // seen, whether it is dropped or not; the directory is one of `Readers::roots`, which outlive each reading thread.
    UnsubmittedOneshot::new(request, Opened, entry).submit().await
}

/// Turns the completion of an open into its descriptor.
struct Opened;

impl OneshotOutputTransform for Opened {
    type Output = (Result<OwnedFd, Errno>, Self::StoredData);
    type StoredData = Box<OpenRequest>;

    fn transform_oneshot_output(self, data: Self::StoredData, completion: cqueue::Entry) -> Self::Output {
        let result = completion.result();
        let opened = if result < 0 {
            Err(Errno::from_raw_os_error(-result))
        } else {
            // SAFETY: a result that is not negative is a descriptor that this open created and nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(result) })
        };
        (opened, data)
    }
}

/// Cancels all operations that the ring has not begun yet.
pub(super) async fn cancel_all() {
    let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
    // SAFETY of the entry's pointers: it has none.
    UnsubmittedOneshot::new((), Canceled, entry).submit().await;
}

/// Ignores the completion of a cancellation, because each canceled operation has a completion of its own.
struct Canceled;

impl OneshotOutputTransform for Canceled {
    type Output = ();
    type StoredData = ();

    fn transform_oneshot_output(self, (): Self::StoredData, _: cqueue::Entry) -> Self::Output {}
}

/// The descriptor of a file, for plain calls.
pub(super) fn borrow(file: &File) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open for as long as `file` is borrowed, because closing consumes the file.
    unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) }
}
