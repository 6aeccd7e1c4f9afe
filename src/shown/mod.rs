//! What may be shown of a text: on one line, without the passwords that this process was given.
//!
//! File names, settings, environment variables and the answers of brokers and services were written by others. Each way to
//! a terminal or a log goes through here once, at its end, so that no place that composes a line has to think of it.

mod mask;
mod secrets;

use std::fmt::{self, Display, Write};

pub use mask::{mask, mask_stray};
pub use secrets::without_secrets;

/// Shows a text on one line: what a terminal or a reader of lines would act on is escaped as Rust escapes it (`\n`, `\u{1b}`).
///
/// That are control characters, line and paragraph separators, and the invisible ones that turn the direction of text
/// around. Quotes and backslashes stay, so a text that was escaped already is shown as it is.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<T>(pub T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(to), "{}", self.0)
    }
}

/// The line that may be shown of a text: see [`OneLine`] and [`without_secrets`].
#[must_use]
pub fn line(text: impl Display) -> String {
    OneLine(without_secrets(&text.to_string())).to_string()
}

/// A line of JSON in which no character needs escaping by [`OneLine`]. In JSON such a character stands within a string, where
/// `\u` and its number mean the same.
#[must_use]
pub fn json_line(json: &str) -> String {
    let json = without_secrets(json);
    let mut line = String::with_capacity(json.len());
    for each in json.chars() {
        if is_shown(each) {
            line.push(each);
        } else {
            let mut units = [0; 2];
            for unit in each.encode_utf16(&mut units) {
                // A String takes everything.
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line
}

/// Passes a text on with what is not to be shown escaped.
struct Escaping<'a, W>(&'a mut W);

impl<W: Write> Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|each| !is_shown(each)) {
            let (before, from) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut left = from.chars();
            for escaped in left.next().into_iter().flat_map(char::escape_debug) {
                self.0.write_char(escaped)?;
            }
            rest = left.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Whether Rust's `Debug` shows a character as it is within a string.
fn is_shown(each: char) -> bool {
    if each.is_ascii() {
        return !each.is_ascii_control();
    }
    // Behind another character: alone, `Debug` escapes accents too, which are harmless.
    let mut pair = [b' '; 5];
    let length = each.encode_utf8(&mut pair[1..]).len();
    str::from_utf8(&pair[..=length]).is_ok_and(|pair| pair.escape_debug().count() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newline, ESC, BEL, DEL, NEL, CSI, line separator, bidirectional override and isolate, zero width, byte order mark, tag.
    const UNSHOWN: &str =
        "\n\r\t\u{1b}\u{7}\0\u{7f}\u{85}\u{9b}\u{2028}\u{2029}\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}";

    #[test]
    fn a_text_is_shown_on_one_line_without_control_characters() {
        let shown = OneLine(format!("a{UNSHOWN}b")).to_string();
        assert!(shown.is_ascii() && shown.starts_with("a\\n\\r\\t\\u{1b}\\u{7}\\0\\u{7f}\\u{85}"), "{shown}");
        assert_eq!(OneLine(&shown).to_string(), shown, "it is not escaped twice");
        for plain in ["", "\"/srv/a\\nb\" 'é' e\u{301} 日本 \u{1f3b5} \u{fffd}", "a  b"] {
            assert_eq!(OneLine(plain).to_string(), plain);
        }
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = format!("a\"\\{UNSHOWN}é\u{1f3b5}");
        let json = serde_json::to_string(&value).unwrap();
        let line = json_line(&json);
        assert!(line.chars().all(is_shown), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), value);
    }
}
