//! Advice that depends on who reads it: nobody who types `scan` or `listen` at a terminal has a unit or workers to change.

use std::sync::OnceLock;

/// Who reads the lines of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Somebody who operates the service: of `watch`, and of `doctor`, which speaks of it.
    Operator,
    /// Somebody who publishes files once: `scan`.
    Publisher,
    /// Somebody who reads along: `listen`, `health`, `completions`.
    Listener,
}

static READER: OnceLock<Reader> = OnceLock::new();

/// Sets the reader, once.
pub fn address_to(reader: Reader) {
    let _ = READER.set(reader);
}

fn reader() -> Reader {
    READER.get().copied().unwrap_or(Reader::Operator)
}

/// The names of a limit: in a unit of systemd, and in a shell.
#[must_use]
pub fn limit(unit: &str, shell: &str) -> String {
    limit_for(reader(), unit, shell)
}

fn limit_for(reader: Reader, unit: &str, shell: &str) -> String {
    if reader == Reader::Operator { format!("{unit} in systemd, {shell}") } else { shell.to_owned() }
}

/// What to do if descriptors are short while files are read.
#[must_use]
pub fn open_files() -> String {
    format!("Raise the limit of open files ({}), or lower --workers", limit("LimitNOFILE", "ulimit -n"))
}

/// What to do if the system refuses a thread.
#[must_use]
pub fn threads() -> &'static str {
    match reader() {
        Reader::Operator => {
            "raise the limit of threads (ulimit -u, TasksMax= in systemd, --pids-limit of a container), or lower --workers"
        }
        Reader::Publisher => "raise the limit of threads (ulimit -u, --pids-limit of a container), or lower --workers",
        Reader::Listener => "raise the limit of threads (ulimit -u, --pids-limit of a container)",
    }
}

/// What to do if a file on standard output may not grow.
#[must_use]
pub fn file_size() -> &'static str {
    match reader() {
        Reader::Operator => "raise the limit of a file's size (ulimit -f, LimitFSIZE=)",
        Reader::Publisher | Reader::Listener => "raise the limit of a file's size (ulimit -f)",
    }
}

/// What to do if standard output cannot be written.
#[must_use]
pub fn stdout() -> &'static str {
    match reader() {
        Reader::Operator | Reader::Publisher => "keep its reader running, or choose --output amqp",
        Reader::Listener => "keep its reader running",
    }
}

/// What to do if the broker refuses this user something.
#[must_use]
pub fn permissions() -> &'static str {
    match reader() {
        Reader::Operator | Reader::Publisher => {
            "correct user, password and permissions (configure and write on the exchange `apollonia`)"
        }
        Reader::Listener => {
            "correct user, password and permissions (read on the exchange `apollonia`; configure, write and read on queues amq.*)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_to_those_who_may_have_one() {
        assert_eq!(limit_for(Reader::Operator, "LimitNOFILE", "ulimit -n"), "LimitNOFILE in systemd, ulimit -n");
        assert_eq!(limit_for(Reader::Publisher, "LimitNOFILE", "ulimit -n"), "ulimit -n");
    }
}
