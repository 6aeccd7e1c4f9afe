//! Variables that are named like settings and are none: most are mistyped.

use std::ffi::OsString;

use clap::Command;

/// How the variables of settings begin, but for those whose names others have given.
const PREFIX: &str = "INGESTOR_";

/// A variable that is no setting, and the setting whose name is nearest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVariable {
    /// The name of the variable.
    pub name: String,
    /// The name of the nearest setting's variable.
    pub nearest: String,
}

/// The variables among `names` that begin like settings, in any case, and are none, sorted.
pub(super) fn unknown(definition: &Command, names: impl Iterator<Item = OsString>) -> Vec<UnknownVariable> {
    let known: Vec<Known> = definition.get_arguments().filter_map(Known::of).collect();
    let is_unknown = |name: &String| {
        name.to_ascii_uppercase().starts_with(PREFIX) && known.iter().all(|known| known.variable != *name)
    };
    let nearest = |name: String| {
        let nearest = known.iter().min_by_key(|known| known.distance(&name.to_ascii_uppercase()))?;
        Some(UnknownVariable { name, nearest: nearest.variable.clone() })
    };
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let mut unknown: Vec<UnknownVariable> = names.filter(is_unknown).filter_map(nearest).collect();
    unknown.sort_by(|one, other| one.name.cmp(&other.name));
    unknown
}

/// A setting's variable, with what it is mistaken for.
struct Known {
    variable: String,
    /// The variable itself, behind the prefix, and the flag in the form of a variable.
    spellings: [String; 3],
}

impl Known {
    fn of(setting: &clap::Arg) -> Option<Self> {
        let variable = setting.get_env()?.to_string_lossy().into_owned();
        let flag = setting.get_long()?.replace('-', "_").to_ascii_uppercase();
        let spellings = [variable.clone(), format!("{PREFIX}{variable}"), format!("{PREFIX}{flag}")];
        Some(Self { variable, spellings })
    }

    fn distance(&self, name: &str) -> usize {
        let distances = self.spellings.iter().map(|spelling| strsim::damerau_levenshtein(spelling, name));
        distances.min().unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn an_unknown_variable_is_named_with_the_nearest() {
        for (name, nearest) in [
            ("INGESTOR_WORKER", "INGESTOR_WORKERS"),
            ("INGESTOR_CATCHUP", "INGESTOR_CATCH_UP"),
            ("INGESTOR_LOG_LEVEL", "LOG_LEVEL"),
            ("INGESTOR_DATA_DIR", "DATA_DIRECTORY"),
            ("INGESTOR_DATA_DIRECTORY", "DATA_DIRECTORY"),
            ("INGESTOR_AMQP_URL", "AMQP_CONNECTION_STRING"),
            ("ingestor_quiet_ms", "INGESTOR_QUIET_MS"),
        ] {
            let expected = UnknownVariable { name: name.to_owned(), nearest: nearest.to_owned() };
            assert_eq!(unknown(&Cli::command(), [OsString::from(name)].into_iter()), [expected]);
        }
    }

    #[test]
    fn settings_and_variables_of_others_are_not_named() {
        let names = ["INGESTOR_WORKERS", "LOG_LEVEL", "PATH", "MY_INGESTOR_WORKERS", "INGESTOR"];
        assert_eq!(unknown(&Cli::command(), names.into_iter().map(OsString::from)), []);
    }
}
