//! A look at the broker for `doctor`: it logs in and asks, and leaves nothing behind.

use super::connect::connect;
use super::errors::answer;
use super::exchange::{Known, declare, exists};
use super::fence::{Fenced, ask};
use super::session::close;
use crate::address::Broker;
use crate::config::Publisher;
use crate::error::Error;
use crate::routing::Exchange;

/// What [`look`] has seen.
#[derive(Debug)]
pub struct Seen {
    /// The address in use, its secrets masked.
    pub at: String,
    /// What is known of the exchange; `None` where it does not exist.
    pub exchange: Option<Known>,
    /// Whether the fences can be had.
    pub fence: Fenced,
}

/// Connects, and checks whether the exchange exists and can be used, and whether the fences of these directories can be
/// taken.
///
/// # Errors
/// [`Error::Broker`], as when the service starts.
pub async fn look(broker: &Broker, exchange: &Exchange, publishers: &[Publisher]) -> Result<Seen, Error> {
    let (connection, at) = connect(broker).await?;
    let channel = answer(&at, connection.create_channel()).await?;
    let known = match exists(&channel, &at, exchange).await? {
        // The exchange exists, so this declaration compares and creates nothing.
        true => Some(declare(&connection, channel, &at, exchange).await?.1),
        false => None,
    };
    let fence = ask(&connection, &at, publishers).await?;
    close(&connection).await;
    Ok(Seen { at, exchange: known, fence })
}
