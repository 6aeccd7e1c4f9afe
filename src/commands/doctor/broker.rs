//! The broker, as far as it can be checked without publishing a message.

use std::sync::Arc;

use super::check::Check;
use crate::address::Broker;
use crate::cli::{Output, Settings};
use crate::commands::roots::publishers;
use crate::commands::runtime::runtime;
use crate::config::Publisher;
use crate::error::Error;
use crate::files::root::Root;
use crate::publish::exchange::Known;
use crate::publish::fence::Fenced;
use crate::publish::look::{Seen, look};
use crate::routing::Exchange;

const NAME: &str = "broker";

/// Checks address, network, TLS, login, virtual host, the exchange, and the queues that fence off other services. Only a
/// message would show whether a queue is bound, whether an alarm blocks publishers, whether this user may write to the
/// exchange, and whether it may declare one that is missing.
pub fn check(settings: &Settings, roots: &[Arc<Root>]) -> Check {
    let broker = match Broker::new(&settings.amqp) {
        Ok(broker) => broker,
        Err(error) => return Check::refused(NAME, &error),
    };
    if settings.output != Output::Amqp {
        return Check::ok(NAME, "not looked at: the output is another");
    }
    let exchange = settings.route.exchange();
    // Another check reports directories that cannot be opened, or not in time.
    let publishers = publishers(roots, &exchange);
    let checked = runtime().and_then(|runtime| runtime.block_on(look_at_each(&broker, &exchange, &publishers)));
    checked.unwrap_or_else(|error| Check::refused(NAME, &error))
}

/// Logs in at the first host that can be reached, as the service does, and then at the others, which a failover needs.
async fn look_at_each(broker: &Broker, exchange: &Exchange, publishers: &[Publisher]) -> Result<Check, Error> {
    let seen = look(broker, exchange, publishers).await?;
    let found =
        format!("{}: logged in; the exchange `{}` {}", seen.at, exchange.name, describe(seen.exchange.as_ref()));
    let mut refused = Vec::new();
    for other in broker.each().filter(|other| other.shown() != seen.at) {
        if let Err(error) = look(&other, exchange, &[]).await {
            refused.push(Check::refused(NAME, &error));
        }
    }
    if let Some(cure) = refused.first().and_then(|first| first.cure.clone()) {
        let others: Vec<_> = refused.into_iter().map(|other| other.found).collect();
        return Ok(Check::warn(NAME, format!("{found}; of its other hosts {}", others.join(", ")), cure));
    }
    Ok(verdict(&seen, found))
}

fn verdict(seen: &Seen, found: String) -> Check {
    match (&seen.fence, &seen.exchange) {
        (Fenced::Refused(queue), _) => Check::warn(
            NAME,
            format!(
                "{found}; this user may not declare the queue {queue}, so after a crash a path's last message may be an older one"
            ),
            "give it the permission `configure` on ^apollonia-ingestor- (rabbitmqctl set_permissions)",
        ),
        (_, Some(Known::AutoDeleted)) => Check::warn(
            NAME,
            found,
            "bind a queue that stays, or name an exchange without auto_delete with --exchange (INGESTOR_EXCHANGE)",
        ),
        (Fenced::Held, _) => Check::ok(NAME, format!("{found}; a service publishes these directories now")),
        (Fenced::Free, _) => Check::ok(NAME, found),
    }
}

fn describe(exchange: Option<&Known>) -> String {
    let there = "is there; whether a queue is bound to it only a message shows";
    match exchange {
        None => "is not there yet, `watch` declares it where this user may (the permission `configure`)".to_owned(),
        Some(Known::Declared) => there.to_owned(),
        Some(Known::Argument(argument)) => format!("has arguments of its own ({argument}) and can be used; it {there}"),
        Some(Known::AutoDeleted) => format!("goes when its last queue is unbound (auto_delete); it {there}"),
        Some(Known::Unchecked) => {
            format!("is not this user's to declare, so its type and durability are not known; it {there}")
        }
    }
}
