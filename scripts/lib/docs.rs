//! Writes shell completions and man pages from the definition of the command line: run by `scripts/make-docs`.

use std::error::Error;
use std::fs;
use std::path::Path;

use apollonia_ingestor::cli::{Shell, definition};
use apollonia_ingestor::commands::completions::script;
use clap_mangen::Man;

/// What the definition does not say, in roff, at the end of the main page.
const MORE: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
A clean end: SIGINT or SIGTERM, or a scan of every file.
.TP
\fB1\fR
A failure at run time: the broker was lost, the directory vanished, \fBscan\fR could not read some file.
.TP
\fB2\fR
An argument or a setting that cannot be used.
.PP
A failure is one line on standard error: what, why, and what to do.
.SH FILES
.TP
\fI/etc/apollonia\-ingestor.env\fR
Settings as variables, read by the systemd unit of the package.
.TP
\fI/etc/credstore/apollonia\-ingestor.amqp\-password\fR, \fIapollonia\-ingestor.amqp\-url\fR
The broker's password, or the whole connection string, as credentials of the systemd unit.
.TP
\fI/var/lib/apollonia\-ingestor\fR
The ledger of confirmed file versions, where the systemd unit keeps it.
.TP
\fI/run/apollonia\-ingestor/ingestor.sock\fR
The control socket of the service that the systemd unit runs.
.SH "SEE ALSO"
\fBinotify\fR(7), \fBio_uring\fR(7), \fBsystemd.service\fR(5)
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, date] = arguments.as_slice() else {
        return Err("usage: docs DIR YYYY-MM-DD".into());
    };
    completions(&Path::new(out).join("completions"))?;
    man_pages(&Path::new(out).join("man"), date)
}

/// What the command `completions` prints, under the names that the shells look for.
fn completions(directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let name = definition().get_name().to_owned();
    fs::write(directory.join(format!("{name}.bash")), script(Shell::Bash))?;
    fs::write(directory.join(format!("_{name}")), script(Shell::Zsh))?;
    fs::write(directory.join(format!("{name}.fish")), script(Shell::Fish))?;
    Ok(())
}

/// One page for the program and one for each sub-command.
fn man_pages(directory: &Path, date: &str) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let mut program = definition();
    program.build();
    for command in program.get_subcommands() {
        page(command.clone(), date).generate_to(directory)?;
    }
    let page = page(program, date);
    let mut text = Vec::new();
    page.render(&mut text)?;
    text.extend_from_slice(MORE.as_bytes());
    fs::write(directory.join(page.get_filename()), text)?;
    Ok(())
}

fn page(command: clap::Command, date: &str) -> Man {
    let source = concat!("apollonia-ingestor ", env!("CARGO_PKG_VERSION"));
    Man::new(command).date(date).source(source).manual("User Commands")
}
