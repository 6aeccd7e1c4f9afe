//! The exchange: declared where this user may, else used as it is.
//!
//! An administrator may have declared it with arguments of its own (an alternate exchange), or may keep the permission
//! `configure` from this user. A passive declaration compares nothing. An active one names the first difference, and the
//! broker looks at type, durability, automatic deletion and `internal` before it looks at arguments: so a difference in an
//! argument says that all of these agree.

use lapin::options::ExchangeDeclareOptions;
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::errors::{RESERVED_PREFIX, answer, answer_or_refusal, failure, soft_error};
use crate::error::Error;
use crate::routing::Exchange;

/// What is known of an exchange that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It is as the service declares it.
    Declared,
    /// It is durable and of the type that is set; this argument of its own is the first that differs.
    Argument(String),
    /// As [`Known::Argument`] or [`Known::Declared`], and it goes when its last queue or exchange is unbound.
    AutoDeleted,
    /// It exists, and this user may not declare it: the broker does not say of which type it is.
    Unchecked,
}

/// Declares the exchange, and finds out whether it can be used as it is where the broker refuses that. Returns the channel,
/// which is another one after a refusal.
///
/// # Errors
/// [`Error::Broker`], also when the exchange does not exist and this user may not declare it.
pub async fn declare(
    connection: &Connection,
    mut channel: Channel,
    at: &str,
    exchange: &Exchange,
) -> Result<(Channel, Known), Error> {
    let mut auto_delete = false;
    loop {
        let refused = match answer_or_refusal(at, active(&channel, exchange, auto_delete)).await? {
            Ok(()) if auto_delete => return Ok((channel, Known::AutoDeleted)),
            Ok(()) => return Ok((channel, Known::Declared)),
            Err(refused) => refused,
        };
        let known = match soft_error(&refused) {
            // No permission helps there.
            Some(AMQPSoftError::ACCESSREFUSED) if refused.to_string().contains(RESERVED_PREFIX) => {
                return Err(failure(at, &refused));
            }
            Some(AMQPSoftError::ACCESSREFUSED) => Known::Unchecked,
            Some(AMQPSoftError::PRECONDITIONFAILED) => match differing(&refused.to_string()) {
                // It exists, so declaring it as what it is creates nothing and compares the rest.
                Some("auto_delete") if !auto_delete => {
                    auto_delete = true;
                    channel = answer(at, connection.create_channel()).await?;
                    continue;
                }
                None | Some("type" | "durable" | "auto_delete" | "internal") => return Err(failure(at, &refused)),
                Some(_) if auto_delete => Known::AutoDeleted,
                Some(argument) => Known::Argument(argument.to_owned()),
            },
            _ => return Err(failure(at, &refused)),
        };
        // The refusal has closed the channel.
        channel = answer(at, connection.create_channel()).await?;
        if known == Known::Unchecked && !exists(&channel, at, exchange).await? {
            return Err(missing(at, exchange, &refused));
        }
        return Ok((channel, known));
    }
}

/// Whether the exchange exists, whatever it is. Where it does not, the answer has closed the channel.
///
/// # Errors
/// [`Error::Broker`].
pub async fn exists(channel: &Channel, at: &str, exchange: &Exchange) -> Result<bool, Error> {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(exchange.name.clone(), exchange.kind.clone(), passive, FieldTable::default());
    match answer_or_refusal(at, declared).await? {
        Ok(()) => Ok(true),
        Err(refused) if soft_error(&refused) == Some(AMQPSoftError::NOTFOUND) => Ok(false),
        Err(refused) => Err(failure(at, &refused)),
    }
}

/// Logs what differs between the exchange and what the service would declare.
pub fn log(exchange: &Exchange, known: &Known) {
    let name = &exchange.name;
    match known {
        Known::Declared => {}
        Known::Argument(argument) => {
            tracing::info!(
                event = "exchange_as_it_is",
                exchange = name.as_str(),
                "the exchange `{name}` has arguments of its own ({argument}): it is used as it is"
            );
        }
        Known::AutoDeleted => tracing::warn!(
            event = "exchange_as_it_is",
            exchange = name.as_str(),
            "the exchange `{name}` is used as it is, and the broker deletes it when its last queue is unbound (auto_delete)"
        ),
        Known::Unchecked => tracing::info!(
            event = "exchange_as_it_is",
            exchange = name.as_str(),
            "this user may not declare the exchange `{name}`: it is used as it is, its type and durability are not known"
        ),
    }
}

async fn active(channel: &Channel, exchange: &Exchange, auto_delete: bool) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, auto_delete, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.name.clone(), exchange.kind.clone(), durable, FieldTable::default()).await
}

/// What differs, by RabbitMQ's text: `inequivalent arg 'durable' for exchange 'x' in vhost ...`.
fn differing(refusal: &str) -> Option<&str> {
    refusal.split_once("inequivalent arg '")?.1.split_once("' for exchange").map(|(argument, _)| argument)
}

fn missing(at: &str, exchange: &Exchange, refused: &lapin::Error) -> Error {
    let Error::Broker { cause, .. } = failure(at, refused) else { return failure(at, refused) };
    Error::Broker {
        url: at.to_owned(),
        cause: format!("the exchange `{}` does not exist, and this user may not declare it: {cause}", exchange.name),
        next: "have it declared, durable and of the type that is set, or give this user the permission `configure` on it (rabbitmqctl set_permissions)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_says_what_differs() {
        let of = |argument| {
            format!("PRECONDITION_FAILED - inequivalent arg '{argument}' for exchange 'x' in vhost '/': received none")
        };
        for argument in ["type", "alternate-exchange", "x-it's"] {
            assert_eq!(differing(&of(argument)), Some(argument));
        }
        assert_eq!(differing("PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'x' in vhost '/'"), None);
        assert_eq!(differing("PRECONDITION_FAILED - exchange declared with other arguments"), None);
    }
}
