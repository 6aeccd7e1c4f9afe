//! The settings of the way of a message at the broker.

use clap::Args;
use lapin::ExchangeKind;
use lapin::types::ShortString;

use super::groups::BROKER;
use crate::routing::{self, Exchange, RoutingKey};

/// The exchange that messages go to when no setting names another.
pub const DEFAULT_EXCHANGE: &str = "apollonia";

/// The settings of the way of a message at the broker.
#[derive(Debug, Clone, Args)]
pub struct RouteSettings {
    /// The exchange that messages go to: declared at start, durable; one that is there is used as it is when it is durable
    /// and of the type that is set
    #[arg(
        help_heading = BROKER, long, env = "INGESTOR_EXCHANGE", global = true, value_name = "NAME", default_value = DEFAULT_EXCHANGE,
        value_parser = routing::exchange_name
    )]
    pub exchange: ShortString,
    /// Its type: fanout, topic, direct, or that of a plugin (x-...)
    #[arg(
        help_heading = BROKER, long, env = "INGESTOR_EXCHANGE_TYPE", global = true, value_name = "TYPE", default_value = "fanout",
        value_parser = routing::exchange_kind
    )]
    pub exchange_type: ExchangeKind,
    /// The routing key, with {event} (IN_CREATE and so on), {dir} (the path of the file's directory below the data
    /// directory, a . for each /), {ext} (what follows the last dot of its name) and {root} (the name of the data directory)
    /// filled in; cut at 255 bytes
    #[arg(
        help_heading = BROKER, long, env = "INGESTOR_ROUTING_KEY", global = true, value_name = "KEY", default_value = "file.created",
        value_parser = RoutingKey::parse
    )]
    pub routing_key: RoutingKey,
}

impl RouteSettings {
    /// The exchange that messages go to.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        Exchange { name: self.exchange.clone(), kind: self.exchange_type.clone() }
    }
}
