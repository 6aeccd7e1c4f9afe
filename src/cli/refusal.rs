//! What clap refuses, in one line.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};

use crate::shown::without_secrets;

/// An error of clap, which has several lines, in one, with the variable's name beside the flag's.
pub(super) fn one_line(error: &clap::Error, command: &clap::Command) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string);
    if let (Some(arg), Some(value)) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue)) {
        let flag = arg.split([' ', '=', '[']).next().unwrap_or(&arg).to_owned();
        let variable = command
            .get_arguments()
            .find(|known| known.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long)))
            .and_then(|known| known.get_env())
            .map_or_else(String::new, |variable| format!(" ({})", variable.to_string_lossy()));
        let cause = match (std::error::Error::source(error), context(ContextKind::ValidValue)) {
            (Some(cause), _) => cause.to_string(),
            (None, Some(valid)) => format!("it must be one of {valid}"),
            (None, None) => "it takes another value".to_owned(),
        };
        return format!("{flag}{variable}: {value:?} cannot be used: {cause}");
    }
    if error.kind() == ErrorKind::InvalidUtf8
        && let Some(variable) = variables(command).find(|name| std::env::var_os(name).is_some_and(not_utf8))
    {
        return format!("{}: it is not UTF-8", variable.to_string_lossy());
    }
    // A password may hold newlines, so it is masked before the lines are joined.
    let rendered = error.to_string();
    let rendered = without_secrets(&rendered);
    let first: Vec<&str> = rendered.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let line = first.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// The variables whose values have to be text: of all but paths and globs.
fn variables(command: &clap::Command) -> impl Iterator<Item = &OsStr> {
    let of_text = |arg: &&clap::Arg| {
        let value = arg.get_value_parser().type_id();
        value != TypeId::of::<PathBuf>() && value != TypeId::of::<OsString>()
    };
    command.get_arguments().filter(of_text).filter_map(clap::Arg::get_env)
}

fn not_utf8(value: OsString) -> bool {
    value.into_string().is_err()
}
