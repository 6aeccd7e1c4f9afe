//! The output without a broker.

use std::io::{self, BufWriter, Write};

use tokio::sync::mpsc::Receiver;

use crate::error::Error;
use crate::pipeline::{Outgoing, Post};
use crate::vitals::Vitals;

/// Batches written before their jobs are reported: one write for all of them.
const BATCHES_TOGETHER: usize = 16;

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 256 * 1024;

/// One JSON object a line. A message counts as confirmed when its line was written.
///
/// # Errors
/// [`Error::Stdout`], when nobody reads it any more for one.
pub fn to_stdout(mut messages: Receiver<Vec<Outgoing>>, post: &Post, vitals: &Vitals) -> Result<(), Error> {
    let mut lines = BufWriter::with_capacity(WRITE_BYTES, io::stdout().lock());
    let mut batches = Vec::with_capacity(BATCHES_TOGETHER);
    while messages.blocking_recv_many(&mut batches, BATCHES_TOGETHER) > 0 {
        for message in batches.iter().flatten() {
            lines.write_all(&message.body).and_then(|()| lines.write_all(b"\n")).map_err(Error::Stdout)?;
        }
        lines.flush().map_err(Error::Stdout)?;
        let written: Vec<_> = batches.drain(..).flatten().map(Outgoing::confirmed).collect();
        vitals.metrics.messages_published.inc_by(written.len() as u64);
        vitals.publish.done(written.len());
        post.report(written);
    }
    Ok(())
}
