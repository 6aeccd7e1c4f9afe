//! The passwords among the arguments and variables of this process, taken out of what it prints.
//!
//! A connection string may have been given where none belongs: as a command, as a directory, under a misspelt name. Whoever
//! then composes an error from it cannot know. So each text is compared with what the process was given.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::sync::LazyLock;

use super::mask::{authority, mask, mask_stray};

/// What each argument or variable that holds a secret may look like in a text, and what is shown in its place.
static GIVEN: LazyLock<Vec<(String, String)>> =
    LazyLock::new(|| replacements(std::env::args_os().chain(std::env::vars_os().map(|(_, value)| value))));

/// The text without the secrets that this process was given, and without the password of any other URL.
#[must_use]
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    replace(text, &GIVEN)
}

fn replacements(given: impl IntoIterator<Item = OsString>) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = given.into_iter().flat_map(|each| forms(&each)).collect();
    // A value within another must not take a part of it away.
    found.sort_by_key(|(whole, _)| std::cmp::Reverse(whole.len()));
    found.dedup();
    found
}

/// A value as it is, as the value of its flag alone, and each as `Debug` and JSON write it.
fn forms(given: &OsStr) -> Vec<(String, String)> {
    let text = given.to_string_lossy();
    let value = text.strip_prefix("--").and_then(|flag| flag.split_once('=')).map(|(_, value)| value);
    let quoted = format!("{given:?}");
    let bare = quoted.get(1..quoted.len() - 1).filter(|bare| *bare != text);
    let mut forms = Vec::new();
    for whole in [Some(&*text), value, bare].into_iter().flatten() {
        let Some(masked) = mask_stray(whole) else { continue };
        for write in [str::to_owned, debug, json, |text: &str| json(&debug(text))] {
            forms.push((write(whole), write(&masked)));
        }
    }
    forms.dedup();
    forms
}

/// As `Debug` writes a text, without the quotes.
fn debug(text: &str) -> String {
    let quoted = format!("{text:?}");
    quoted[1..quoted.len() - 1].to_owned()
}

/// As JSON writes a text, without the quotes.
fn json(text: &str) -> String {
    let quoted = simd_json::to_string(text).unwrap_or_default();
    quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default().to_owned()
}

fn replace<'a>(text: &'a str, given: &[(String, String)]) -> Cow<'a, str> {
    let mut shown = Cow::Borrowed(text);
    for (whole, masked) in given {
        if !whole.is_empty() && shown.contains(whole.as_str()) {
            shown = Cow::Owned(shown.replace(whole.as_str(), masked));
        }
    }
    if shown.contains("://") { Cow::Owned(mask_urls(&shown)) } else { shown }
}

/// Replaces the password of each URL in a text, for those that came in parts or from elsewhere.
fn mask_urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while rest.contains("://") {
        let (scheme, after) = rest.split_at(authority(rest));
        let end = after.find(|each: char| each.is_whitespace() || "\"'`/?#\\".contains(each)).unwrap_or(after.len());
        // What ends a sentence or a part of it is none of the URL's.
        let login = after[..end].trim_end_matches([':', ';', ',', '.', ')']);
        let behind = &after[login.len()..];
        shown.push_str(scheme);
        if login.starts_with("USER:PASSWORD@") {
            shown.push_str(login); // the advice of an error
        } else {
            shown.push_str(&mask(&format!("://{login}"))[3..]);
        }
        rest = behind;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_was_given_is_masked_in_every_form() {
        for given in [
            &b"amqp://user:s3cret@h/"[..],
            b"--amqp-ulr=amqp://user:s3cret@h/",
            b"--amqp-urlAMQP://user:s3cret@h,i/",
            b"--data-dir=user:s3cret@h",
            b"amqp://user:a b\"s3cret'\\c@h/",
            b"amqp://user:\xffs3cret@h/",
            b"amqp://user:\ns3cret@h/",
            b"!amqp://user:s3cret@h/",
            b"amqp://s3cret@h/",
        ] {
            let given = OsString::from_vec(given.to_vec());
            let known = replacements([given.clone(), "x".into()]);
            let text = given.to_string_lossy().into_owned();
            let value = text.strip_prefix("--data-dir=").unwrap_or(&text);
            for line in [
                format!("unexpected argument '{text}' found"),
                format!("{text:?} cannot be used: {text}; see --help"),
                format!("--data-dir: {:?} cannot be used", PathBuf::from(&given)),
                format!("{{\"message\":{}}}", serde_json::to_string(&format!("{text:?} {value}")).unwrap()),
            ] {
                let shown = replace(&line, &known);
                assert!(!shown.contains("s3cret") && shown.contains("***"), "{shown}");
            }
        }
    }

    #[test]
    fn passwords_of_other_urls_are_masked_and_other_text_is_not() {
        let shown = |text| replace(text, &[]).into_owned();
        assert_eq!(shown("\"!amqp://u:p\" (amqps://u:p@h,i/v)"), "\"!amqp://u:***\" (amqps://u:***@h,i/v)");
        for plain in [
            "watching \"/srv/a:b@c\"",
            "write amqp://USER:PASSWORD@HOST:PORT/VHOST",
            "http://h:1/x@y",
            "://",
            "a :// b",
            "12:30 @ home",
        ] {
            assert_eq!(shown(plain), plain);
        }
        assert!(replacements(["watch", "--workers=3", "/srv/drop", ""].map(OsString::from)).is_empty());
    }
}
