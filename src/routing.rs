//! The way of a message at the broker: the exchange, its type, and the routing key of each file.
//!
//! Each value is checked when the command line is read, so that the protocol can carry whatever comes later.

use lapin::ExchangeKind;
use lapin::types::ShortString;

/// The longest name or routing key in bytes (AMQP 0-9-1, 4.2.5.3: a short string has one byte for its length).
pub const SHORT_STRING_MAX: usize = 255;

/// How the type of an exchange begins that a plugin of the broker brings.
const PLUGIN_TYPE: &str = "x-";

/// The exchange that messages go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: ShortString,
    /// Its type.
    pub kind: ExchangeKind,
}

impl Exchange {
    /// By which key of a message it finds the queues, in words to follow its name; nothing where it does not look at the key
    /// ([fanout](https://www.rabbitmq.com/docs/exchanges#fanout)).
    #[must_use]
    pub fn routed_by(&self, key: &str) -> String {
        match self.kind {
            ExchangeKind::Fanout => String::new(),
            _ => format!(" for the routing key {key:?}"),
        }
    }
}

/// Checks the name of an exchange.
///
/// # Errors
/// The reason why there can be no exchange of this name.
pub fn exchange_name(given: &str) -> Result<ShortString, String> {
    if given.is_empty() {
        return Err("the exchange without a name is the broker's own".to_owned());
    }
    short_string(given, "the name of an exchange")
}

/// Reads the type of an exchange.
///
/// # Errors
/// The reason why it is none.
pub fn exchange_kind(given: &str) -> Result<ExchangeKind, String> {
    match given {
        "fanout" => Ok(ExchangeKind::Fanout),
        "topic" => Ok(ExchangeKind::Topic),
        "direct" => Ok(ExchangeKind::Direct),
        "headers" => Err("no header of a message is for routing; it must be fanout, topic, direct or x-...".to_owned()),
        plugin if plugin.strip_prefix(PLUGIN_TYPE).is_some_and(|rest| !rest.is_empty()) => {
            short_string(plugin, "the type of an exchange")?;
            Ok(ExchangeKind::Custom(plugin.to_owned()))
        }
        _ => Err("it must be fanout, topic, direct, or the type of a plugin, which begins with x-".to_owned()),
    }
}

fn short_string(given: &str, what: &str) -> Result<ShortString, String> {
    if given.contains(char::is_control) {
        return Err(format!("{what} has no control characters"));
    }
    ShortString::try_new(given).map_err(|_| format!("{what} has at most {SHORT_STRING_MAX} bytes"))
}

/// The routing key of messages: a text, with places that each file fills in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingKey {
    /// The text as it was set.
    given: String,
    /// The whole key, where no file changes it.
    literal: Option<ShortString>,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Event,
    Dir,
    Ext,
    Root,
}

/// The placeholders, as they stand between braces.
const PLACEHOLDERS: [(&str, Part); 4] =
    [("event", Part::Event), ("dir", Part::Dir), ("ext", Part::Ext), ("root", Part::Root)];

/// What of a file its routing key can hold.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    /// The event, as the message names it.
    pub event: &'a str,
    /// The path of the file below the data directory.
    pub path: &'a [u8],
    /// The real path of the data directory.
    pub root: &'a [u8],
}

impl RoutingKey {
    /// Reads a routing key with its placeholders.
    ///
    /// # Errors
    /// The reason why messages cannot have this routing key.
    pub fn parse(given: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = given;
        while let Some(at) = rest.find(['{', '}']) {
            parts.extend(literal(&rest[..at]));
            let Some((name, behind)) = rest[at..].strip_prefix('{').and_then(|inside| inside.split_once('}')) else {
                return Err(format!("a brace stands alone; {}", known()));
            };
            let Some((_, part)) = PLACEHOLDERS.iter().find(|(known, _)| *known == name) else {
                return Err(format!("there is no placeholder {{{name}}}; {}", known()));
            };
            parts.push(part.clone());
            rest = behind;
        }
        parts.extend(literal(rest));
        let text: String = parts.iter().filter_map(Part::text).collect();
        let fixed = short_string(&text, "a routing key")?;
        let literal = parts.iter().all(|part| part.text().is_some()).then_some(fixed);
        Ok(Self { given: given.to_owned(), literal, parts })
    }

    /// The whole key, where no file changes it.
    #[must_use]
    pub fn literal(&self) -> Option<&ShortString> {
        self.literal.as_ref()
    }

    /// The routing key of a file's message. U+FFFD replaces what is not UTF-8, and what the protocol has no room for is cut
    /// off at its end, at a character's boundary.
    #[must_use]
    pub fn of(&self, file: Routed<'_>) -> ShortString {
        if let Some(literal) = &self.literal {
            return literal.clone();
        }
        let mut key = String::new();
        for part in &self.parts {
            part.append(file, &mut key);
        }
        key.truncate(key.floor_char_boundary(SHORT_STRING_MAX));
        ShortString::try_new(key).unwrap_or_default()
    }
}

fn literal(text: &str) -> Option<Part> {
    (!text.is_empty()).then(|| Part::Literal(text.to_owned()))
}

fn known() -> String {
    let names: Vec<String> = PLACEHOLDERS.iter().map(|(name, _)| format!("{{{name}}}")).collect();
    format!("the placeholders are {}", names.join(", "))
}

impl Part {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Literal(text) => Some(text),
            _ => None,
        }
    }

    fn append(&self, file: Routed<'_>, key: &mut String) {
        let (dir, name) = split_last(file.path);
        match self {
            Self::Literal(text) => key.push_str(text),
            Self::Event => key.push_str(file.event),
            Self::Dir => key.push_str(&String::from_utf8_lossy(dir).replace('/', ".")),
            Self::Ext => key.push_str(&String::from_utf8_lossy(extension(name))),
            Self::Root => key.push_str(&String::from_utf8_lossy(split_last(file.root).1)),
        }
    }
}

/// A path's directory and its last name. A path without a `/` is a name.
fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// What follows a name's last dot. A leading dot does not count as one, as with a message's neighbors.
fn extension(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|byte| *byte == b'.') {
        None | Some(0) => b"",
        Some(at) => &name[at + 1..],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(given: &str, path: &[u8]) -> String {
        let file = Routed { event: "IN_CREATE", path, root: b"/srv/incoming" };
        RoutingKey::parse(given).unwrap().of(file).to_string()
    }

    #[test]
    fn each_placeholder_is_filled_in() {
        assert_eq!(key("file.created", b"a/b"), "file.created");
        assert_eq!(key("x.{event}.y", b"a"), "x.IN_CREATE.y");
        assert_eq!(key("{root}.{dir}.{ext}", b"a b/c.d/e.tar.gz"), "incoming.a b.c.d.gz");
        assert_eq!(key("{root}-{dir}-{ext}", b".bashrc"), "incoming--");
        assert_eq!(key("{ext}{ext}", b"a.x"), "xx");
        assert_eq!(key("{dir}", b"\xff/f"), "\u{fffd}");
        assert_eq!(key("", b"a"), "");
    }

    #[test]
    fn what_is_no_routing_key_is_refused() {
        for given in ["{", "}", "a{dir", "a}b", "{Dir}", "{}", "{{dir}}", "{file}", "a\nb", &"é".repeat(128)] {
            assert!(RoutingKey::parse(given).is_err(), "{given}");
        }
        assert!(RoutingKey::parse("{path}").unwrap_err().contains("{event}, {dir}, {ext}, {root}"));
        assert!(RoutingKey::parse(&"x".repeat(255)).is_ok());
        assert!(RoutingKey::parse(&format!("{}{{dir}}{}", "x".repeat(200), "y".repeat(56))).is_err());
    }

    #[test]
    fn what_is_no_exchange_is_refused() {
        for given in ["", "a\nb", "\u{7f}", &"x".repeat(256)] {
            assert!(exchange_name(given).is_err(), "{given:?}");
        }
        assert_eq!(exchange_name("amq.fanout").unwrap().as_str(), "amq.fanout");
        for given in ["", "headers", "Fanout", "x-", "x", "x-\t", &format!("x-{}", "y".repeat(254))] {
            assert!(exchange_kind(given).is_err(), "{given:?}");
        }
        assert_eq!(exchange_kind("x-random").unwrap(), ExchangeKind::Custom("x-random".to_owned()));
    }

    proptest! {
        #[test]
        fn no_file_has_a_key_that_the_protocol_cannot_carry(
            path in prop::collection::vec(prop::sample::select(&[b'a', b'/', b'.', 0xff, 0xc3, 0xa9][..]), 0..600),
        ) {
            let whole = key("{dir}", &path);
            let mut kept = key("k.{dir}{ext}", &path);
            prop_assert!(kept.len() <= SHORT_STRING_MAX);
            let is_whole = kept.ends_with(&key("{ext}", &path));
            prop_assert!(is_whole || kept.len() > SHORT_STRING_MAX - 4);
            kept.truncate(kept.floor_char_boundary(whole.len() + 2));
            let short = format!("k.{whole}");
            prop_assert!(short.starts_with(&kept) || kept.starts_with(&short), "{kept} {whole}");
        }
    }
}
