//! One pattern as it is typed, and a list of them as a variable holds it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use globset::{Glob, GlobBuilder};

/// One pattern, with the meaning that it has in `.gitignore`.
#[derive(Debug)]
pub(super) struct Pattern {
    pub files: Glob,
    /// If the pattern takes whole directories: these, and the ones below them.
    pub directories: Vec<Glob>,
}

impl Pattern {
    /// Compiles a pattern, or returns what is wrong with it.
    pub(super) fn parse(typed: &OsStr) -> Result<Self, String> {
        let typed = typed.to_str().ok_or("it is not UTF-8; write ? for each byte of a name that is not")?;
        if typed.starts_with('!') {
            return Err("a leading ! means nothing here; write \\! for a name that begins so".to_owned());
        }
        let (name, whole) = typed.strip_suffix('/').map_or((typed, false), |name| (name, true));
        let path = name.strip_prefix('/').unwrap_or(name);
        check_parts(path)?;
        check_classes(typed)?;
        let path = if name.contains('/') { path.to_owned() } else { format!("**/{path}") };
        // From here on a slash at the end means the same as `/**`.
        let directory = if whole { Some(&path[..]) } else { path.strip_suffix("/**") };
        let Some(directory) = directory else { return Ok(Self { files: glob(&path)?, directories: Vec::new() }) };
        let below = glob(&format!("{directory}/**"))?;
        Ok(Self { files: below.clone(), directories: vec![glob(directory)?, below] })
    }
}

fn check_parts(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("it names nothing".to_owned());
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("no path below the data directory holds an empty name, . or ..".to_owned());
    }
    Ok(())
}

/// Names are matched as bytes, so a class cannot hold a character of several bytes.
fn check_classes(typed: &str) -> Result<(), String> {
    let mut bytes = typed.bytes().zip(contexts(typed.as_bytes()));
    if bytes.any(|(byte, context)| context == Context::Class && !byte.is_ascii()) {
        return Err("[] takes ASCII only; write {a,b} for one of several other characters".to_owned());
    }
    Ok(())
}

fn glob(pattern: &str) -> Result<Glob, String> {
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .empty_alternates(true)
        .build()
        .map_err(|error| error.kind().to_string())
}

/// Splits the value of a variable into its patterns. Commas separate them, except within `{}` or `[]` and after a `\`.
/// Spaces around a pattern are not part of it.
#[must_use]
pub fn patterns_of(variable: &OsStr) -> Vec<OsString> {
    let typed = variable.as_bytes();
    let contexts = contexts(typed);
    let separators = (0..typed.len()).filter(|&at| typed[at] == b',' && contexts[at] == Context::Bare);
    let mut patterns = Vec::new();
    let mut begin = 0;
    for end in separators.chain([typed.len()]) {
        patterns.push(OsString::from_vec(typed[begin..end].trim_ascii().to_vec()));
        begin = end + 1;
    }
    patterns
}

/// What surrounds a byte of a pattern, or escapes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    Bare,
    Escaped,
    Braces,
    Class,
}

/// The context of each byte. Brackets and braces are in their own. One that is opened and not closed extends to the end.
fn contexts(pattern: &[u8]) -> Vec<Context> {
    let mut contexts = Vec::with_capacity(pattern.len());
    let mut braces = 0usize;
    while let Some(&byte) = pattern.get(contexts.len()) {
        let rest = &pattern[contexts.len()..];
        let here = if braces > 0 { Context::Braces } else { Context::Bare };
        match byte {
            b'\\' => contexts.extend(std::iter::repeat_n(Context::Escaped, rest.len().min(2))),
            b'[' => contexts.extend(std::iter::repeat_n(Context::Class, class_length(rest))),
            b'{' => {
                braces += 1;
                contexts.push(Context::Braces);
            }
            b'}' => {
                braces = braces.saturating_sub(1);
                contexts.push(here);
            }
            _ => contexts.push(here),
        }
    }
    assert_eq!(contexts.len(), pattern.len(), "each byte has one context");
    contexts
}

/// The length of the class at the beginning of `rest`, with its brackets. A `]` right after the opening bracket, or after
/// its `!` or `^`, is one of its characters, and so is the `]` of a `[:name:]` that does not end a range.
fn class_length(rest: &[u8]) -> usize {
    assert_eq!(rest.first(), Some(&b'['), "a class begins with a bracket");
    let negated = matches!(rest.get(1), Some(b'!' | b'^'));
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    let mut in_range = false;
    while let Some(&byte) = rest.get(at) {
        match (byte, named_class_length(&rest[at..])) {
            (b'[', Some(length)) if !in_range => {
                at += length;
                continue;
            }
            (b']', _) if at > first => return at + 1,
            _ => in_range = byte == b'-' && at > first && !in_range,
        }
        at += 1;
    }
    rest.len()
}

/// The longest name in a `[:name:]`: globset 0.4.22 takes no more lower-case letters for one.
const CLASS_NAME_MAX: usize = 8;

/// The length of the `[:name:]` at the beginning of `rest`, if there is one. Which name it is makes no difference here.
fn named_class_length(rest: &[u8]) -> Option<usize> {
    let name = rest.strip_prefix(b"[:")?;
    let length = name.iter().take_while(|byte| byte.is_ascii_lowercase()).count();
    (length <= CLASS_NAME_MAX && name[length..].starts_with(b":]")).then_some(length + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_ends_with_its_bracket() {
        for (rest, length) in [("[a],b", 3), ("[]a]", 4), ("[!]a]b", 5), ("[[:alpha:]]", 11), ("[a-]]", 4), ("[a,b", 4)]
        {
            assert_eq!(class_length(rest.as_bytes()), length, "{rest}");
        }
    }

    #[test]
    fn a_named_class_has_a_name_of_few_lower_case_letters() {
        for (rest, length) in
            [("[:alpha:]]", Some(9)), ("[:alpha]]", None), ("[:Alpha:]", None), ("[:alphabets:]", None)]
        {
            assert_eq!(named_class_length(rest.as_bytes()), length, "{rest}");
        }
    }
}
