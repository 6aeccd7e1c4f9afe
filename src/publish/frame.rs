//! The frame of a message's properties. The protocol cuts a body into frames, and these never: headers that do not fit into the
//! frame size that was agreed on with the broker are left out, because such a frame ends the connection.

use std::cell::Cell;
use std::time::{Duration, Instant};

use lapin::protocol::basic::gen_properties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Connection};

/// Bytes of the frame beside the properties (AMQP 0-9-1, 2.3.5 and 4.2.6.1): type, channel, size and end of the frame, and
/// class, weight and size of the body.
const OVERHEAD_BYTES: usize = 1 + 2 + 4 + 1 + 2 + 2 + 8;

/// The shortest time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The longest frame of a connection.
#[derive(Debug)]
pub struct FrameLimit {
    bytes: usize,
    warned_at: Cell<Option<Instant>>,
}

impl FrameLimit {
    /// The limit that was agreed on.
    pub fn of(connection: &Connection) -> Self {
        Self::new(connection.configuration().frame_max() as usize)
    }

    fn new(bytes: usize) -> Self {
        Self { bytes, warned_at: Cell::new(None) }
    }

    /// The properties, without the headers that make them too long: the longest go first. `path` is the file's, for the log.
    pub fn fit(&self, properties: BasicProperties, path: impl Fn() -> Vec<u8>) -> BasicProperties {
        // The other properties are a few hundred bytes at most, and every broker takes a frame of 4096.
        if properties.headers().is_none() || self.takes(&properties) {
            return properties;
        }
        let mut headers = properties.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
        let mut fitting = properties;
        while let Some(name) = longest(headers.iter()) {
            headers.remove(&name);
            self.warn(&name, &path);
            fitting = fitting.with_headers(FieldTable::from(headers.clone()));
            if self.takes(&fitting) {
                break;
            }
        }
        fitting
    }

    fn takes(&self, properties: &BasicProperties) -> bool {
        gen_properties(properties)(Vec::new().into())
            .is_ok_and(|written| written.write.len() + OVERHEAD_BYTES <= self.bytes)
    }

    /// Logs that a header is left out, at most once a minute.
    fn warn(&self, name: &ShortString, path: &impl Fn() -> Vec<u8>) {
        let now = Instant::now();
        if self.warned_at.get().is_some_and(|at| now - at < WARN_EVERY) {
            return;
        }
        self.warned_at.set(Some(now));
        let path = path();
        let path = String::from_utf8_lossy(&path);
        tracing::warn!(
            event = "header_left_out",
            path = &*path,
            "the message of {path:?} goes out without the header {name}, which does not fit into a frame of {} bytes, and so do others like it: raise frame_max at the broker, or in AMQP_CONNECTION_STRING where it is set there",
            self.bytes
        );
    }
}

/// The name of the header with the longest value.
fn longest<'a>(headers: impl Iterator<Item = (&'a ShortString, &'a AMQPValue)>) -> Option<ShortString> {
    let length = |value: &AMQPValue| match value {
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::LongString(text) => text.len(),
        _ => 0,
    };
    headers.max_by_key(|(_, value)| length(value)).map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use lapin::types::ByteArray;

    use super::*;

    fn with(headers: &[(&str, usize)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, length) in headers {
            table.insert((*name).into(), AMQPValue::ByteArray(ByteArray::from(vec![7; *length])));
        }
        BasicProperties::default().with_delivery_mode(2).with_headers(table)
    }

    fn names(properties: &BasicProperties) -> Vec<&str> {
        properties.headers().iter().flat_map(|headers| headers.inner().keys().map(ShortString::as_str)).collect()
    }

    #[test]
    fn only_what_does_not_fit_is_left_out_and_the_longest_first() {
        let limit = FrameLimit::new(4096);
        assert_eq!(names(&limit.fit(with(&[("a", 2000), ("b", 1900)]), Vec::new)), ["a", "b"]);
        assert_eq!(names(&limit.fit(with(&[("a", 2000), ("b", 2100)]), Vec::new)), ["a"]);
        assert_eq!(names(&limit.fit(with(&[("a", 4096), ("b", 4097)]), Vec::new)), [""; 0]);
        let none = BasicProperties::default().with_delivery_mode(2);
        assert_eq!(limit.fit(none.clone(), Vec::new), none);
    }

    #[test]
    fn a_frame_may_be_as_long_as_was_agreed_on() {
        // 2 bytes of flags, 4 of the table's length, 1 and 1 of the name, 1 of the type, 4 of the value's length, 1 of the mode.
        let most = 4096 - OVERHEAD_BYTES - (2 + 4 + 1 + 1 + 1 + 4 + 1);
        let limit = FrameLimit::new(4096);
        assert_eq!(names(&limit.fit(with(&[("a", most)]), Vec::new)), ["a"]);
        assert_eq!(names(&limit.fit(with(&[("a", most + 1)]), Vec::new)), [""; 0]);
    }
}
