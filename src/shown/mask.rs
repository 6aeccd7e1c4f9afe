//! Connection strings with their secrets replaced.

/// The parameters of the query that the client knows. Their values are numbers and words; any other value can be a secret.
const PLAIN_PARAMETERS: [&str; 5] = ["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism"];

/// The ports of RabbitMQ by custom, plain and by TLS.
const BROKER_PORTS: [&str; 2] = ["5672", "5671"];

/// A connection string with its secrets replaced, whether or not it parses.
#[must_use]
pub fn mask(typed: &str) -> String {
    let (before, after) = match secret(typed) {
        Some((from, to)) => (format!("{}***", &typed[..from]), &typed[to..]),
        None => (String::new(), typed),
    };
    let end = after.find('#').unwrap_or(after.len());
    match after[..end].split_once('?') {
        None => before + after,
        Some((path, query)) => {
            let query: Vec<_> = query.split('&').map(mask_parameter).collect();
            format!("{before}{path}?{}{}", query.join("&"), &after[end..])
        }
    }
}

/// A text with the secrets replaced that it has if it is a connection string in a place where none belongs; `None` where it
/// does not look like one.
#[must_use]
pub fn mask_stray(text: &str) -> Option<String> {
    // A `/` before the first `:` is a list of directories rather than a user.
    let login = || text.split_once(':').is_some_and(|(user, rest)| !user.contains('/') && rest.contains('@'));
    let named = || ["amqp:", "amqps:"].iter().any(|scheme| text.to_ascii_lowercase().contains(scheme));
    if !(text.contains("://") || login() || named()) {
        return None;
    }
    Some(mask(text)).filter(|masked| masked != text)
}

/// Where the secret is: between the first `:` of the user information and the last `@`, or all of a user information
/// without a `:`, because it may be a token. Where there is no `@` and something after a `:` is no port, the hosts were
/// forgotten, and everything after the first `:` may be the password; so may a virtual host behind an unusual port.
fn secret(typed: &str) -> Option<(usize, usize)> {
    let start = authority(typed);
    let rest = &typed[start..];
    let (from, to) = match rest.rfind('@') {
        Some(end) => (rest[..end].find(':').map_or(0, |colon| colon + 1), end),
        None if hosts(typed).all(looks_like_a_host) => return unusual_path(typed),
        None => (rest.find(':')? + 1, rest.len()),
    };
    Some((start + from, start + to))
}

/// The virtual host of `host:127/path`, which can be `USER:PASSWORD` with a `/` in the password.
fn unusual_path(typed: &str) -> Option<(usize, usize)> {
    let start = authority(typed);
    let (host, rest) = typed[start..].split_once('/')?;
    let (name, port) = host.rsplit_once(':')?;
    let path = start + host.len() + 1;
    let end = rest.find(['?', '#']).map_or(typed.len(), |at| path + at);
    let usual = BROKER_PORTS.contains(&port) || host.contains(',') || name.contains(':');
    (!usual && !port.is_empty() && path < end).then_some((path, end))
}

/// Where the authority begins: user information and hosts.
pub(super) fn authority(typed: &str) -> usize {
    typed.find("://").map_or(0, |at| at + 3)
}

/// The hosts of a connection string without user information.
fn hosts(typed: &str) -> impl Iterator<Item = &str> {
    let hosts = &typed[authority(typed)..];
    hosts[..hosts.find(['/', '?', '#']).unwrap_or(hosts.len())].split(',')
}

fn mask_parameter(parameter: &str) -> String {
    let is_plain = |value: &str| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match parameter.split_once('=') {
        Some((name, value)) if PLAIN_PARAMETERS.contains(&name) && is_plain(value) => parameter.to_owned(),
        Some((name, _)) => format!("{name}=***"),
        None if parameter.is_empty() || PLAIN_PARAMETERS.contains(&parameter) => parameter.to_owned(),
        None => "***".to_owned(),
    }
}

/// `host`, `host:1`, `[::1]` and `[::1]:1`, whatever the host is.
fn looks_like_a_host(text: &str) -> bool {
    let behind = match text.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
        Some((_, behind)) => behind,
        None => text.find(':').map_or("", |colon| &text[colon..]),
    };
    behind.is_empty() || behind.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_replaced_wherever_it_can_be() {
        for (typed, masked) in [
            ("amqp://u:p@h:1/v", "amqp://u:***@h:1/v"),
            ("AMQPS://u:p@h:1,i,[::1]:2/v", "AMQPS://u:***@h:1,i,[::1]:2/v"),
            ("amqp://token@h/v", "amqp://***@h/v"),
            ("amqp://user token@h", "amqp://***@h"),
            ("amqp://user:127/token", "amqp://user:127/***"),
            ("amqp://user:127/token?heartbeat=5", "amqp://user:127/***?heartbeat=5"),
            ("amqp://u:a?b@h?heartbeat=5;x=y", "amqp://u:***@h?heartbeat=***"),
            ("amqp://h?pass%77ord=s=3&auth_mechanism=plain#x", "amqp://h?pass%77ord=***&auth_mechanism=plain#x"),
        ] {
            assert_eq!(mask(typed), masked);
        }
        for typed in [
            "amqp://h:5672/v",
            "amqp://[::1]",
            "amqp://[::1]:5672/",
            "amqp://h",
            "amqp://h:1,i,[::1]:2/v",
            "amqp://h:5672?heartbeat=5",
            "amqp://h/v:w",
            "amqp://h:1/",
        ] {
            assert_eq!(mask(typed), typed);
        }
    }

    #[test]
    fn a_connection_string_is_recognized_where_none_belongs() {
        for (typed, masked) in [
            ("--amqp-ulr=amqp://u:p@h", "--amqp-ulr=amqp://u:***@h"),
            ("--amqp-urlamqp://u:p@h", "--amqp-urlamqp://u:***@h"),
            ("!amqp://u:p@h/", "!amqp://u:***@h/"),
            ("u:p@h", "u:***@h"),
            ("amqp:u:p", "amqp:***"),
            ("--amqp-urlamqp:u:p", "--amqp-urlamqp:***"),
            ("AMQP:/u:p@h", "AMQP:***@h"),
        ] {
            assert_eq!(mask_stray(typed).as_deref(), Some(masked));
        }
        for typed in
            ["/srv/drop", "/srv/a:/srv/b", "/srv/a:/srv/b@c", "a@b", "amqp", "127.0.0.1:9464", "amqp://h/", "a@b:c"]
        {
            assert_eq!(mask_stray(typed), None, "{typed}");
        }
    }
}
