//! The groups of the settings: their headings in the help, and which command uses which.

use clap::{Arg, Command};

/// Which files there are to publish.
pub(super) const FILES: &str = "Files";
/// When a file is published, and what is remembered of it.
pub(super) const WATCHING: &str = "Watching";
/// How files are read.
pub(super) const READING: &str = "Reading";
/// The connection to the broker.
pub(super) const BROKER: &str = "Broker";
/// Where messages go, and how.
pub(super) const PUBLISHING: &str = "Publishing";
/// What a running service answers.
pub(super) const SERVICE: &str = "Service";
/// Log lines.
pub(super) const LOG: &str = "Log lines";

/// The name of the command that is meant where none is written.
const DEFAULT: &str = "watch";

/// Whether a command uses a setting. `doctor` checks what `watch` uses.
fn uses(command: &str, setting: &Arg) -> bool {
    let group = setting.get_help_heading().unwrap_or_default();
    match command {
        "watch" | "doctor" => true,
        "scan" => [FILES, READING, BROKER, PUBLISHING, LOG].contains(&group),
        "verify" => [FILES, READING, LOG].contains(&group) || setting.get_id() == "state_dir",
        "listen" => [BROKER, LOG].contains(&group),
        "health" | "status" => group == LOG || setting.get_id() == "control_socket",
        _ => false,
    }
}

/// The definition in which each command takes every setting, so that one command line fits all of them, and shows only
/// those that it uses. It reads no variable of the others.
pub(super) fn hide_unused(definition: Command) -> Command {
    let settings = settings(&definition);
    definition.mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        let unused = settings.iter().filter(|setting| !uses(&name, setting));
        // The headings stand in the order of the first setting of each, hidden or not.
        let hidden =
            |setting: &Arg| setting.clone().hide(true).help_heading(None::<&'static str>).env(None::<&'static str>);
        unused.map(hidden).fold(command, Command::arg)
    })
}

/// The definition in which each command has only the settings that it uses, for what is made from it: completions and man
/// pages.
pub(super) fn leave_out_unused(definition: Command) -> Command {
    let settings = settings(&definition);
    let own = |setting: &Arg| setting.clone().global(false);
    definition.mut_args(|arg| arg.global(false)).mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        settings.iter().filter(|setting| uses(&name, setting)).map(own).fold(command, Command::arg)
    })
}

/// The definition without the variables of settings that the command does not use, because clap reads all of them before
/// it comes to the command: so a value that another command would refuse keeps nobody from asking for `health`.
pub(super) fn without_unused_variables(definition: Command, command: Option<&str>) -> Command {
    let command = command.unwrap_or(DEFAULT);
    definition.mut_args(|arg| if uses(command, &arg) { arg } else { arg.env(None::<&'static str>) })
}

fn settings(definition: &Command) -> Vec<Arg> {
    definition.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect()
}
