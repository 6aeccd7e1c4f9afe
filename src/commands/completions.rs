//! `completions`: the script with which a shell completes this program's command lines.

use clap_complete::{Generator, generate};

use crate::cli::{self, Shell};
use crate::error::Error;
use crate::streams::stdout::print;

/// Prints the script on standard output.
///
/// # Errors
/// [`Error::Stdout`].
pub fn run(shell: Shell) -> Result<(), Error> {
    print(&String::from_utf8_lossy(&script(shell)))
}

/// The script for a shell.
#[must_use]
pub fn script(shell: Shell) -> Vec<u8> {
    match shell {
        Shell::Bash => with_its_labels(&generated(clap_complete::Shell::Bash)),
        Shell::Zsh => generated(clap_complete::Shell::Zsh),
        Shell::Fish => generated(clap_complete::Shell::Fish),
    }
}

/// The script for bash with the labels that it looks for. clap_complete 4.6 writes the hyphen of the program's name into them
/// in another form than it looks for, so that no command's flags would be completed.
fn with_its_labels(script: &[u8]) -> Vec<u8> {
    let name = cli::definition().get_name().to_owned();
    let (written, wanted) = (name.replace('-', "__subcmd__"), name.replace('-', "__"));
    String::from_utf8_lossy(script).replace(&written, &wanted).into_bytes()
}

fn generated(shell: impl Generator) -> Vec<u8> {
    let (mut definition, mut script) = (cli::definition(), Vec::new());
    let name = definition.get_name().to_owned();
    generate(shell, &mut definition, name, &mut script);
    script
}
