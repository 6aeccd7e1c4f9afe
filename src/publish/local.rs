//! The output to standard output, without a broker.

use std::io::{BufWriter, Write};

use tokio::sync::mpsc::Receiver;

use crate::error::Error;
use crate::job::Outgoing;
use crate::mailbox::ReportSender;
use crate::progress::Progress;
use crate::streams::stdout::Stdout;

/// The most batches that share one write. Their jobs are reported after it.
const BATCHES_TOGETHER: usize = 16;

/// The size of the write buffer, in bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// Writes one JSON object a line. A message counts as confirmed once its line is written.
///
/// # Errors
/// [`Error::Stdout`], for example when its reader has ended.
pub fn to_stdout(
    stdout: Stdout,
    mut messages: Receiver<Vec<Outgoing>>,
    sender: &ReportSender,
    progress: &Progress,
) -> Result<(), Error> {
    let mut lines = BufWriter::with_capacity(WRITE_BYTES, stdout);
    let mut batches = Vec::with_capacity(BATCHES_TOGETHER);
    while messages.blocking_recv_many(&mut batches, BATCHES_TOGETHER) > 0 {
        for message in batches.iter().flatten() {
            lines.write_all(&message.body).and_then(|()| lines.write_all(b"\n")).map_err(Error::Stdout)?;
        }
        lines.flush().map_err(Error::Stdout)?;
        let written: Vec<_> = batches.drain(..).flatten().map(Outgoing::confirmed).collect();
        progress.metrics.messages_published.inc_by(written.len() as u64);
        progress.publish.done(written.len());
        sender.report(written);
    }
    Ok(())
}
