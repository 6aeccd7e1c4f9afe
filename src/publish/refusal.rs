//! The broker's refusal of a message for its size, which closes the channel and is one file's failure. Pure.
//!
//! RabbitMQ answers `PRECONDITION_FAILED - message size 5000 is larger than configured max size 4096`, and does not say
//! which of the published messages it means.

use lapin::ErrorKind;
use lapin::protocol::AMQPSoftError;

use super::errors::soft_error;

/// Stands before the size in the text of such a refusal.
const MARK: &str = "message size ";

/// A refusal of a message for its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The broker's words.
    pub text: String,
    /// The refused message's size and the largest one that the broker takes, in bytes, where the text names both.
    sizes: Option<(usize, usize)>,
}

impl Refusal {
    /// The refusal, if the error is one.
    pub fn of(error: &lapin::Error) -> Option<Self> {
        let ErrorKind::ProtocolError(refusal) = error.kind() else { return None };
        let precondition = soft_error(error) == Some(AMQPSoftError::PRECONDITIONFAILED);
        precondition.then(|| Self::read(refusal.get_message().as_str())).flatten()
    }

    fn read(text: &str) -> Option<Self> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let behind = text.to_ascii_lowercase().find(MARK)? + MARK.len();
        let numbers = text[behind..].split(|it: char| !it.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let sizes = match numbers.map(str::parse).collect::<Result<Vec<usize>, _>>().as_deref() {
            Ok(&[refused, limit]) if limit < refused => Some((refused, limit)),
            _ => None,
        };
        Some(Self { text, sizes })
    }

    /// The size above which the broker refuses a message, in bytes. `None` where the text does not name it, or names a size
    /// that no published message has: then the broker measures in another way, and the number would condemn the wrong ones.
    pub fn limit(&self, mut published: impl Iterator<Item = usize>) -> Option<usize> {
        self.sizes.filter(|(refused, _)| published.any(|size| size == *refused)).map(|(_, limit)| limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_from_the_text_and_believed_if_a_message_has_the_size() {
        let text = "PRECONDITION_FAILED - message size 5000 is larger than configured max size 4096";
        let refusal = Refusal::read(text).unwrap();
        assert_eq!(refusal.text, text);
        assert_eq!(refusal.limit([12, 5000].into_iter()), Some(4096));
        assert_eq!(refusal.limit([12, 5001].into_iter()), None);
    }

    #[test]
    fn a_text_without_two_sizes_names_no_limit() {
        for text in ["Message size too large", "message size 5000", "message size 5 of 6", "message size 9 8 7"] {
            assert_eq!(Refusal::read(text).unwrap().limit(0..10_000), None, "{text}");
        }
        assert_eq!(Refusal::read("PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'apollonia'"), None);
        assert_eq!(Refusal::read("PRECONDITION_FAILED - fast reply consumer does not exist"), None);
    }
}
