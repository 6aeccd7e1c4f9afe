//! The broker, as far as it can be checked without publishing a message.

use super::check::Check;
use crate::address::Broker;
use crate::cli::{Output, Settings};
use crate::error::{Error, os_message};
use crate::message::EXCHANGE;
use crate::publish::session::Session;

const NAME: &str = "broker";

/// Checks address, network, TLS, login, virtual host, and the exchange. Only a message would show whether a queue is bound,
/// whether an alarm blocks publishers, and whether this user may declare what is missing.
pub fn check(settings: &Settings) -> Check {
    let broker = match Broker::new(&settings.amqp) {
        Ok(broker) => broker,
        Err(error) => return Check::refused(NAME, &error),
    };
    if settings.output != Output::Amqp {
        return Check::ok(NAME, "not looked at: the output is another");
    }
    let checked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("cannot start: {}", os_message(&error))))
        .and_then(|runtime| runtime.block_on(look(&broker)));
    checked.unwrap_or_else(|error| Check::refused(NAME, &error))
}

/// Logs in at the first host that can be reached, as the service does, and then at the others, which a failover needs.
async fn look(broker: &Broker) -> Result<Check, Error> {
    let (at, there) = Session::look(broker).await?;
    let exchange = match there {
        true => "is there; whether a queue is bound to it only a message shows",
        false => "is not there yet, `watch` declares it where this user may (the permission `configure`)",
    };
    let found = format!("{at}: logged in; the exchange `{EXCHANGE}` {exchange}");
    let mut refused = Vec::new();
    for other in broker.each().filter(|other| other.shown() != at) {
        if let Err(error) = Session::look(&other).await {
            refused.push(Check::refused(NAME, &error));
        }
    }
    let Some(cure) = refused.first().and_then(|first| first.cure.clone()) else { return Ok(Check::ok(NAME, found)) };
    let others: Vec<_> = refused.into_iter().map(|other| other.found).collect();
    Ok(Check::warn(NAME, format!("{found}; of its other hosts {}", others.join(", ")), cure))
}
