//! The errors of clap, which have several lines, in one.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::shown::without_secrets;

/// An error in one line: with the variable's name beside the flag's, and with what is similar to a word that is not known.
pub(super) fn one_line(error: &clap::Error, definition: &clap::Command) -> String {
    let refused = refused_value(error, definition).or_else(|| not_utf8(error, definition));
    let line = refused.unwrap_or_else(|| first_paragraph(error));
    tips(error).into_iter().fold(line, |line, tip| line + "; " + &tip)
}

/// The line for a value that cannot be used.
fn refused_value(error: &clap::Error, definition: &clap::Command) -> Option<String> {
    let context = |kind| error.get(kind).map(ToString::to_string);
    let (arg, value) = (context(ContextKind::InvalidArg)?, context(ContextKind::InvalidValue)?);
    let flag = arg.split([' ', '=', '[']).next().unwrap_or(&arg).to_owned();
    let variable = definition
        .get_arguments()
        .find(|known| known.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long)))
        .and_then(|known| known.get_env())
        .map_or_else(String::new, |variable| format!(" ({})", variable.to_string_lossy()));
    let valid = context(ContextKind::ValidValue).filter(|valid| !valid.is_empty());
    let cause = match (std::error::Error::source(error), valid) {
        (Some(cause), _) => cause.to_string(),
        (None, Some(valid)) => format!("it must be one of {valid}"),
        (None, None) if value.is_empty() => return Some(format!("{flag}{variable}: its value is missing")),
        (None, None) => "it takes another value".to_owned(),
    };
    Some(format!("{flag}{variable}: {value:?} cannot be used: {cause}"))
}

/// The line for a variable that has to be text and is none.
fn not_utf8(error: &clap::Error, definition: &clap::Command) -> Option<String> {
    let is_not = |value: OsString| value.into_string().is_err();
    let mut variables = variables(definition).filter(|_| error.kind() == ErrorKind::InvalidUtf8);
    let variable = variables.find(|name| std::env::var_os(name).is_some_and(is_not))?;
    Some(format!("{}: it is not UTF-8", variable.to_string_lossy()))
}

/// The variables whose values have to be text: of all but paths and globs.
fn variables(definition: &clap::Command) -> impl Iterator<Item = &OsStr> {
    let of_text = |arg: &&clap::Arg| {
        let value = arg.get_value_parser().type_id();
        value != TypeId::of::<PathBuf>() && value != TypeId::of::<OsString>()
    };
    definition.get_arguments().filter(of_text).filter_map(clap::Arg::get_env)
}

/// What clap says before its tips and its usage.
fn first_paragraph(error: &clap::Error) -> String {
    // A password may hold newlines, so it is masked before the lines are joined.
    let rendered = error.to_string();
    let rendered = without_secrets(&rendered);
    let first: Vec<&str> = rendered.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let line = first.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// What clap suggests in place of what was written.
fn tips(error: &clap::Error) -> Vec<String> {
    let similar = [
        (ContextKind::SuggestedArg, "argument"),
        (ContextKind::SuggestedSubcommand, "command"),
        (ContextKind::SuggestedValue, "value"),
    ];
    let tip = |(kind, what)| match error.get(kind)? {
        ContextValue::String(word) => Some(format!("a similar {what} exists: {word}")),
        ContextValue::Strings(words) if !words.is_empty() => {
            Some(format!("a similar {what} exists: {}", words.join(" or ")))
        }
        _ => None,
    };
    similar.into_iter().filter_map(tip).collect()
}
