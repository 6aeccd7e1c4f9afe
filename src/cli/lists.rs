//! Settings that take several values. clap would split a variable at every comma, also within braces, and of a flag on
//! both sides of the command it keeps one side: so their values are taken apart and counted here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::error::Error;
use crate::filter::patterns_of;
use crate::shown::mask_stray;

/// A command line: as it was written, and as clap has read it.
pub(super) struct Given<'a> {
    pub(super) args: &'a [OsString],
    pub(super) matches: &'a ArgMatches,
}

impl Given<'_> {
    /// Whether there is any setting on the command line or in the environment.
    pub(super) fn any(&self, definition: &clap::Command) -> bool {
        let mut settings = definition.get_arguments().filter(|arg| arg.is_global_set());
        settings.any(|arg| {
            let source = self.matches.value_source(arg.get_id().as_str());
            matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        })
    }

    /// Patterns: a flag is one, a variable is a list with commas.
    pub(super) fn patterns(&self, id: &str, read: &mut Vec<OsString>) -> Result<(), Error> {
        match self.matches.value_source(id) {
            Some(ValueSource::EnvVariable) => *read = read.iter().flat_map(|list| patterns_of(list)).collect(),
            _ => self.refuse_split(&format!("--{id}"), read.len())?,
        }
        Ok(())
    }

    /// Directories: a flag is one, a variable is a list with colons. An empty name stays in the list, because only the
    /// commands that open the directories have a reason to refuse it.
    pub(super) fn directories(&self, id: &str, flag: &str, read: &mut Vec<PathBuf>) -> Result<(), Error> {
        match self.matches.value_source(id) {
            Some(ValueSource::EnvVariable) => {
                read.iter().try_for_each(|list| refuse_connection_string(list.as_os_str()))?;
                let names = read.iter().flat_map(|list| list.as_os_str().as_bytes().split(|&byte| byte == b':'));
                *read = names.map(|name| OsStr::from_bytes(name).into()).collect();
            }
            Some(ValueSource::CommandLine) => self.refuse_split(flag, read.len())?,
            _ => {}
        }
        Ok(())
    }

    /// Refuses a flag of which clap has kept fewer values than were written.
    fn refuse_split(&self, flag: &str, kept: usize) -> Result<(), Error> {
        let mine = |arg: &&OsString| {
            let rest = arg.as_bytes().strip_prefix(flag.as_bytes());
            rest.is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'='))
        };
        if self.args.iter().take_while(|arg| *arg != "--").filter(mine).count() == kept {
            return Ok(());
        }
        Err(Error::usage(format!("{flag}: it stands before and behind the command"), "write all of them behind it"))
    }
}

/// Refuses a connection string in the place of directories. Taken apart at its colons, a part of its password would be one.
fn refuse_connection_string(list: &OsStr) -> Result<(), Error> {
    let list = list.to_string_lossy();
    match mask_stray(&list).filter(|_| list.contains("://")) {
        None => Ok(()),
        Some(shown) => Err(Error::usage(
            format!("DATA_DIRECTORY (--data-dir): {shown:?} is a connection string"),
            "set AMQP_CONNECTION_STRING to it, and DATA_DIRECTORY to directories",
        )),
    }
}
