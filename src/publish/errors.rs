//! The broker's answers and refusals, and the error line for each failure.

use std::future::Future;
use std::io;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use crate::advice;
use crate::error::{Error, os_message};
use crate::tls;

/// Timeout of an answer, because a broker can accept the connection and then never answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the broker's answer, within a timeout.
///
/// # Errors
/// [`Error::Broker`], when the broker refuses or does not answer.
pub async fn answer<T>(at: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
    answer_or_refusal(at, asked).await?.map_err(|error| failure(at, &error))
}

/// Waits for the broker's answer, within a timeout, and leaves a refusal to the caller.
///
/// # Errors
/// [`Error::Broker`], when the broker does not answer.
pub async fn answer_or_refusal<T>(
    at: &str,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<lapin::Result<T>, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answered) => Ok(answered),
        Err(_) => Err(silent(at, ANSWER_TIMEOUT)),
    }
}

/// The error for a broker that has not answered for so long.
pub(super) fn silent(at: &str, timeout: Duration) -> Error {
    Error::Broker {
        url: at.to_owned(),
        cause: format!("it has not answered for {} s", timeout.as_secs_f64().round().max(1.0)),
        next: "check that the broker works and that this is its AMQP port",
    }
}

/// The broker's refusal, if it is one that closes the channel alone.
pub(super) fn soft_error(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => match refusal.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// The error line for a failure of the client, with the next step.
#[must_use]
pub fn failure(at: &str, error: &lapin::Error) -> Error {
    let (cause, next) = match error.kind() {
        ErrorKind::IOError(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
            ("connection refused".to_owned(), "start the broker, or correct host and port in AMQP_CONNECTION_STRING")
        }
        ErrorKind::IOError(io) => tls::explain(io).unwrap_or_else(|| {
            let unreachable = "check that the broker runs and can be reached from here, then start again";
            (os_message(io), advice::want(io).unwrap_or(unreachable))
        }),
        ErrorKind::MissingHeartbeatError => {
            ("connection lost: no heartbeat".to_owned(), "check the broker and the network, then start again")
        }
        ErrorKind::ProtocolError(refusal) => {
            let text = one_line(refusal.get_message().as_str());
            let next = next_step(refusal.kind(), &text);
            (text, next)
        }
        ErrorKind::ChannelsLimitReached => (
            "the connection has no room for another channel".to_owned(),
            "raise channel_max of the broker, or of AMQP_CONNECTION_STRING: the service needs two",
        ),
        _ => (one_line(&os_message(error)), "check the broker and the network, then start again"),
    };
    Error::Broker { url: at.to_owned(), cause, next }
}

/// What to do about a refusal. The code says which kind it is and RabbitMQ's text which case; none of these steps destroys
/// what others use.
fn next_step(kind: &AMQPErrorKind, text: &str) -> &'static str {
    let cases: &[(&str, &str)] = match kind {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => &ACCESS_REFUSED,
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => &PRECONDITION_FAILED,
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => &NOT_FOUND,
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => &RESOURCE_LOCKED,
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => &NOT_ALLOWED,
        AMQPErrorKind::Hard(AMQPHardError::RESOURCEERROR) => &RESOURCE_ERROR,
        AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID) => &COMMAND_INVALID,
        AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => &CONNECTION_FORCED,
        _ => &[],
    };
    cases.iter().find(|(part, _)| text.contains(part)).map_or("see the broker's log", |(_, next)| next)
}

/// A part of RabbitMQ's text, and the next step; the first that fits counts. The last of a table fits everything.
type Cases<const N: usize> = [(&'static str, &'static str); N];

const ACCESS_REFUSED: Cases<6> = [
    (
        "Login was refused",
        "correct user, password or auth_mechanism in AMQP_CONNECTION_STRING; `guest` may log in from the broker's own host only",
    ),
    (
        "access to topic",
        "allow this user the routing key (rabbitmqctl set_topic_permissions), or set another with --routing-key (INGESTOR_ROUTING_KEY)",
    ),
    (RESERVED_PREFIX, "name another exchange with --exchange (INGESTOR_EXCHANGE): amq. begins the broker's own"),
    ("internal exchange", "name an exchange that clients may publish to with --exchange (INGESTOR_EXCHANGE)"),
    (
        "exchange '",
        "give this user the permissions `write` and, where it is to declare it, `configure` on the exchange (rabbitmqctl set_permissions)",
    ),
    ("", "correct user, password and permissions (rabbitmqctl set_permissions)"),
];

const PRECONDITION_FAILED: Cases<11> = [
    UNKNOWN_TYPE, // from RabbitMQ 4.0 on
    (
        "inequivalent arg 'type' for exchange",
        "set --exchange-type (INGESTOR_EXCHANGE_TYPE) to the type that it has, or name another exchange with --exchange (INGESTOR_EXCHANGE)",
    ),
    (
        "inequivalent arg 'durable' for exchange",
        "name an exchange that is durable with --exchange (INGESTOR_EXCHANGE): this one would not outlive the broker's restart",
    ),
    (
        "inequivalent arg 'internal' for exchange",
        "name an exchange that clients may publish to with --exchange (INGESTOR_EXCHANGE)",
    ),
    ("for exchange", "name another exchange with --exchange (INGESTOR_EXCHANGE), or use another virtual host"),
    ("for queue", "find who has declared the queue, and have it use another name"),
    (
        "queue limit",
        "raise the limit of queues (rabbitmqctl set_vhost_limits, max-queues), or use another virtual host: `watch` needs a queue for each data directory, and `listen` one",
    ),
    (
        "exchange limit",
        "raise the limit of exchanges (cluster_exchange_limit), or name one that is there with --exchange (INGESTOR_EXCHANGE)",
    ),
    ("message size", "raise the broker's limit of a message's size (max_message_size)"),
    (
        "Invalid argument",
        "have the exchange declared with the arguments that its type needs: it is used as it is when it is there",
    ),
    ("", "see the broker's log for the limit or the argument that it names"),
];

const NOT_FOUND: Cases<2> =
    [("no exchange", "the exchange was deleted; start again to declare it"), ("", "it was deleted; start again")];

const RESOURCE_LOCKED: Cases<1> =
    [("", "the queue is another connection's: end that one, or have it use another name")];

const NOT_ALLOWED: Cases<7> = [
    (
        "user connection limit",
        "raise the user's limit of connections (rabbitmqctl set_user_limits, max-connections), or end connections that nobody needs",
    ),
    (
        "number of channels opened for user",
        "raise the user's limit of channels (rabbitmqctl set_user_limits, max-channels): the service needs two",
    ),
    ("number of channels opened on node", "raise the node's limit of channels (channel_max_per_node)"),
    (NODE_CONNECTIONS, "raise the node's limit of connections (connection_max), or name further nodes of the cluster"),
    (
        "connection limit",
        "raise the virtual host's limit of connections (rabbitmqctl set_vhost_limits, max-connections), or end connections that nobody needs",
    ),
    (
        "not found",
        "create the virtual host (rabbitmqctl add_vhost), or correct its name at the end of AMQP_CONNECTION_STRING",
    ),
    (
        "",
        "correct the virtual host and who may use it (rabbitmqctl set_permissions -p VHOST USER ...), or see the broker's log",
    ),
];

const RESOURCE_ERROR: Cases<1> = [(
    "",
    "the broker lacks memory, disk, descriptors, or room below a limit of its own: its log says which; then start again",
)];

const COMMAND_INVALID: Cases<2> = [UNKNOWN_TYPE, ("", "see the broker's log")];

const UNKNOWN_TYPE: (&str, &str) = (
    "unknown exchange type",
    "enable the plugin that brings the type (rabbitmq-plugins enable), or set another with --exchange-type (INGESTOR_EXCHANGE_TYPE)",
);

const CONNECTION_FORCED: Cases<1> = [("", "the broker has closed the connection; start again")];

/// The text of a refusal of a name that begins with `amq.`.
pub(super) const RESERVED_PREFIX: &str = "reserved prefix";

/// The text of a refusal that is one node's alone.
pub(super) const NODE_CONNECTIONS: &str = "node connection limit";

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    /// RabbitMQ's texts, as versions 3.10 to 4.1 write them.
    const TEXTS: [(u16, &str, &str); 20] = [
        (403, "Login was refused using authentication mechanism PLAIN", "correct user, password"),
        (403, "access to exchange 'x' in vhost '/' refused for user 'u'", "`write`"),
        (403, "configure access to exchange 'x' in vhost '/' refused for user 'u'", "`configure`"),
        (403, "access to topic 'k' in exchange 'x' in vhost '/' refused for user 'u'", "set_topic_permissions"),
        (403, "cannot publish to internal exchange 'x' in vhost '/'", "--exchange"),
        (403, "exchange name 'amq.x' contains reserved prefix 'amq.*'", "amq."),
        (404, "no exchange 'x' in vhost '/'", "start again to declare it"),
        (405, "cannot obtain exclusive access to locked queue 'q' in vhost '/'", "another connection's"),
        (
            406,
            "inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'topic'",
            "--exchange-type",
        ),
        (406, "inequivalent arg 'durable' for exchange 'x' in vhost '/': received 'true'", "durable"),
        (406, "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true'", "another name"),
        (406, "cannot declare queue 'q': queue limit in vhost '/' (0) is reached", "max-queues"),
        (406, "message size 12589 is larger than configured max size 4096", "max_message_size"),
        (406, "unknown exchange type 'x-none'", "rabbitmq-plugins"),
        (503, "unknown exchange type 'x-none'", "rabbitmq-plugins"),
        (506, "out of it", "its log"),
        (530, "access to vhost '/' refused for user 'guest': connection limit (0) is reached", "set_vhost_limits"),
        (530, "connection refused for user 'u': user connection limit (0) is reached", "set_user_limits"),
        (
            530,
            "number of channels opened for user 'u' has reached the maximum allowed user limit of (1)",
            "max-channels",
        ),
        (530, "access to vhost 'v' refused for user 'u': vhost 'v' not found", "add_vhost"),
    ];

    #[test]
    fn each_refusal_has_its_own_next_step_and_none_destroys_anything() {
        for (code, text, wanted) in TEXTS {
            let soft = AMQPSoftError::from_id(code).map(AMQPErrorKind::Soft);
            let kind = soft.or_else(|| AMQPHardError::from_id(code).map(AMQPErrorKind::Hard));
            let refusal = AMQPError::new(kind.expect("a code of the protocol"), text.into());
            let line = failure("amqp://h", &ErrorKind::ProtocolError(refusal).into()).to_string();
            let (_, next) = line.split_once(text).expect("the broker's words");
            assert!(next.contains(wanted), "{wanted:?} is not in {next:?}");
        }
        let tables: [&[(&str, &str)]; 8] = [
            &ACCESS_REFUSED,
            &PRECONDITION_FAILED,
            &NOT_FOUND,
            &RESOURCE_LOCKED,
            &NOT_ALLOWED,
            &RESOURCE_ERROR,
            &COMMAND_INVALID,
            &CONNECTION_FORCED,
        ];
        for (part, next) in tables.into_iter().flatten() {
            assert!(!next.contains("delete ") && !next.contains("remove "), "{part}: {next}");
        }
        assert!(tables.iter().all(|table| table.last().is_some_and(|(part, _)| part.is_empty())));
    }
}
