//! The way of one file through the ring: open, examine, read and hash, examine again, close.

use std::ffi::CStr;
use std::os::fd::AsFd;

use tokio_uring::buf::fixed::FixedBuf;
use tokio_uring::fs::File;

use super::content;
use super::opened::Opened;
use super::operations::{OpenRequest, open};
use super::worker::Worker;
use crate::files::unread::{Unread, Why};
use crate::hash::Digests;
use crate::hash::scheduler::Request;
use crate::job::Job;
use crate::read::readers::examine;
use crate::read::verify::Before;

/// Boxes that a task uses again for each file. Each is `None` while an operation or the scheduler owns it.
#[derive(Default)]
pub(super) struct Scratch {
    open: Option<Box<OpenRequest>>,
    hash: Option<Box<Request<FixedBuf>>>,
}

pub(super) async fn read(worker: &Worker, scratch: &mut Scratch, job: &Job) -> Result<(Before, Digests), Unread> {
    worker.outbox.borrow().check_deadline()?;
    let mut request = scratch.open.take().unwrap_or_default();
    request.path.set(job);
    request.path.as_c_str()?;
    let root = job.directory.root();
    // A large file goes through the ring anyway: its kernel threads read ahead of the hashing.
    if !job.large && worker.plain_reads.are_quick() {
        let request = scratch.open.insert(request);
        let file = Opened::Plain(root.open_file(request.path.as_c_str()?)?);
        return read_open(worker, job, request.path.as_c_str()?, &mut scratch.hash, &file).await;
    }
    let (opened, request) = open(root, request).await;
    let request = scratch.open.insert(request);
    let file = match opened {
        Ok(file) => file,
        // A link is opened by the slower way, with plain calls.
        Err(errno) => root.open_otherwise(request.path.as_c_str()?, errno)?,
    };
    let file = Opened::InRing(File::from_std(file.into()));
    let read = read_open(worker, job, request.path.as_c_str()?, &mut scratch.hash, &file).await;
    file.close().await;
    read
}

async fn read_open(
    worker: &Worker,
    job: &Job,
    path: &CStr,
    request: &mut Option<Box<Request<FixedBuf>>>,
    file: &Opened,
) -> Result<(Before, Digests), Unread> {
    let before = examine(job, file.as_fd())?;
    let digests = content::hash(worker, request, file, &before, job).await?;
    if before.hides_changes() && content::hash(worker, request, file, &before, job).await? != digests {
        return Err(Unread::Busy(Why::Changed));
    }
    before.confirm_all(job.directory.root(), path, file.as_fd(), job.within.is_some())?;
    Ok((before, digests))
}
