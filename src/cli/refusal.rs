//! The errors of clap, which have several lines, in one.

use clap::error::{ContextKind, ContextValue};

/// An error in one line: with the variable's name beside the flag's, and with what is similar to a word that is not known.
pub(super) fn one_line(error: &clap::Error, definition: &clap::Command) -> String {
    let line = refused_value(error, definition).unwrap_or_else(|| first_paragraph(error));
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

/// What clap says before its tips and its usage.
fn first_paragraph(error: &clap::Error) -> String {
    let rendered = error.to_string();
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
