//! A unit of systemd as the source of settings: what `systemctl show` and `systemctl cat` say of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, os_message};

/// The unit that is meant where none is named.
pub(super) const DEFAULT: &str = "apollonia-ingestor.service";

/// Where systemd looks for a credential whose path is not absolute (`LoadCredential=` in systemd.exec(5)).
const CREDENTIALS: [&str; 3] = ["/etc/credstore", "/run/credstore", "/usr/lib/credstore"];

/// The credentials that the service uses, and the settings that name a file in their place.
const CREDENTIAL_SETTINGS: [(&str, &str); 2] =
    [("amqp-url", "AMQP_CONNECTION_STRING_FILE"), ("amqp-password", "AMQP_PASSWORD_FILE")];

/// What of a unit decides what the service sees, and is the same in a transient one: `systemd-run -p NAME=VALUE`.
const RIGHTS: [&str; 9] = [
    "User",
    "Group",
    "SupplementaryGroups",
    "AmbientCapabilities",
    "LimitMEMLOCK",
    "LimitNOFILE",
    "ProtectHome",
    "ProtectSystem",
    "PrivateTmp",
];

/// A unit that systemd has loaded.
#[derive(Debug)]
pub(in crate::commands::doctor) struct Unit {
    pub(super) name: String,
    /// Names and values as `systemctl show` prints them; a name repeats where a setting has several values.
    properties: Vec<(String, String)>,
    /// `LoadCredential=` and `LoadCredentialEncrypted=`, which `systemctl show` does not print.
    credentials: Vec<(String, String)>,
}

impl Unit {
    /// Asks systemd for a unit; `None` where it knows none of this name, or is not what runs this machine (sd_booted(3)).
    ///
    /// # Errors
    /// [`Error::Usage`] when systemctl cannot be asked.
    pub(super) fn find(name: &str) -> Result<Option<Self>, Error> {
        if !Path::new("/run/systemd/system").is_dir() {
            return Ok(None);
        }
        let name = if name.contains('.') { name.to_owned() } else { format!("{name}.service") };
        let shown = systemctl(&["show", "--no-pager", "--", &name])?;
        let properties = assignments(&shown);
        let mut unit = Self { name, properties, credentials: Vec::new() };
        if unit.one("LoadState") != "loaded" {
            return Ok(None);
        }
        let text = systemctl(&["cat", "--no-pager", "--", &unit.name])?;
        unit.credentials = credentials(&text);
        Ok(Some(unit))
    }

    /// The settings files of the unit, with whether one that is not there is left out.
    pub(super) fn env_files(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.all("EnvironmentFiles").filter_map(|shown| {
            let (path, more) = shown.rsplit_once(" (ignore_errors=")?;
            Some((Path::new(path), more == "yes)"))
        })
    }

    /// What the unit itself puts into the environment: its `Environment=`, the directories that systemd makes for it, and
    /// the files of its credentials, as far as they are not encrypted.
    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        let own = self.own_variables().into_iter();
        let mut environment: Vec<(OsString, OsString)> = own.map(|(name, value)| (name.into(), value.into())).collect();
        for (property, variable, parent) in
            [("StateDirectory", "STATE_DIRECTORY", "/var/lib"), ("RuntimeDirectory", "RUNTIME_DIRECTORY", "/run")]
        {
            let made = self.one(property).split(' ').next().filter(|name| !name.is_empty());
            environment.extend(made.map(|name| (variable.into(), Path::new(parent).join(name).into())));
        }
        for (credential, variable) in CREDENTIAL_SETTINGS {
            let file = self.credentials.iter().filter(|(name, _)| name == "LoadCredential").find_map(|(_, value)| {
                let (name, path) = value.split_once(':').unwrap_or((value, value));
                if name == credential { credential_file(path) } else { None }
            });
            environment.extend(file.map(|file| (variable.into(), file.into())));
        }
        environment
    }

    /// Who the service is.
    pub(super) fn user(&self) -> &str {
        match self.one("User") {
            "" => "root",
            user => user,
        }
    }

    /// The command that checks with this unit's rights and settings.
    pub(super) fn command(&self) -> String {
        let mut words = vec!["systemd-run --quiet --pipe --wait --collect".to_owned()];
        let mut property = |name: &str, value: &str| words.push(format!("-p {}", assigned(name, value)));
        for name in RIGHTS {
            if !matches!(self.one(name), "" | "0") {
                property(name, self.one(name));
            }
        }
        for directory in ["StateDirectory", "RuntimeDirectory"] {
            let mode = format!("{directory}Mode");
            if !self.one(directory).is_empty() {
                property(directory, self.one(directory));
                property(&mode, self.one(&mode));
            }
        }
        if !self.one("RuntimeDirectory").is_empty() {
            // The end of the command leaves the running service its socket.
            property("RuntimeDirectoryPreserve", "yes");
        }
        for (path, optional) in self.env_files() {
            property("EnvironmentFile", &format!("{}{}", if optional { "-" } else { "" }, path.display()));
        }
        self.credentials.iter().for_each(|(name, value)| property(name, value));
        // Not as the property, which would take what stands behind a space for another variable.
        words.extend(self.own_variables().iter().map(|(name, value)| format!("-E {}", assigned(name, value))));
        words.push("apollonia-ingestor doctor".to_owned());
        words.join(" ")
    }

    /// `Environment=`, each variable with its value. systemctl quotes them as words of a shell.
    fn own_variables(&self) -> Vec<(String, String)> {
        let words = shlex::split(self.one("Environment")).unwrap_or_default();
        let pairs = words.iter().filter_map(|word| word.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.properties.iter().filter(move |(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    fn one(&self, name: &str) -> &str {
        self.properties.iter().find(|(one, _)| one == name).map_or("", |(_, value)| value)
    }
}

/// Asks systemd, and gives back what it prints.
fn systemctl(args: &[&str]) -> Result<String, Error> {
    let refused =
        |cause: String| Error::usage(format!("systemctl {}: {cause}", args[0]), "name the file by --env-file");
    let output = Command::new("systemctl").args(args).output().map_err(|error| refused(os_message(&error)))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of the form NAME=VALUE.
fn assignments(text: &str) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

/// The credentials that a unit's files name. An empty value takes back those before it, in a drop-in, say.
fn credentials(unit: &str) -> Vec<(String, String)> {
    let mut credentials = Vec::new();
    for (name, value) in assignments(unit) {
        match (name.as_str(), value.is_empty()) {
            ("LoadCredential" | "LoadCredentialEncrypted", false) => credentials.push((name, value)),
            ("LoadCredential" | "LoadCredentialEncrypted", true) => credentials.retain(|(other, _)| *other != name),
            _ => {}
        }
    }
    credentials
}

/// The file of a credential, where there is one.
fn credential_file(path: &str) -> Option<PathBuf> {
    let mut places = CREDENTIALS.iter().map(|directory| Path::new(directory).join(path)); // an absolute path stays
    places.find(|place| place.is_file())
}

/// NAME=VALUE as a shell takes it. There is no NUL, for which alone this can fail: systemctl prints text.
fn assigned(name: &str, value: &str) -> String {
    format!("{name}={}", shlex::try_quote(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd 252 prints of the unit with a drop-in.
    const SHOWN: &str = "Environment=\"A=b c\" D=e \"F=g\\\"h\"\nEnvironmentFiles=/etc/x.env (ignore_errors=yes)\n\
        EnvironmentFiles=/etc/x/music.env (ignore_errors=no)\nUser=apollonia\nSupplementaryGroups=audio video\n\
        StateDirectory=apollonia-ingestor/music\nStateDirectoryMode=0750\nLoadState=loaded\nGroup=";

    fn unit(text: &str) -> Unit {
        Unit { name: DEFAULT.to_owned(), properties: assignments(SHOWN), credentials: credentials(text) }
    }

    #[test]
    fn the_environment_is_the_units_own() {
        let expected =
            [("A", "b c"), ("D", "e"), ("F", "g\"h"), ("STATE_DIRECTORY", "/var/lib/apollonia-ingestor/music")];
        assert_eq!(unit("").environment(), expected.map(|(name, value)| (name.into(), value.into())));
    }

    #[test]
    fn the_files_are_those_of_the_unit() {
        let unit = unit("");
        let files: Vec<_> = unit.env_files().collect();
        assert_eq!(files, [(Path::new("/etc/x.env"), true), (Path::new("/etc/x/music.env"), false)]);
    }

    #[test]
    fn the_command_has_the_units_rights_and_settings() {
        let text =
            "[Service]\n# LoadCredential=no\nLoadCredential=a:b\nLoadCredential=\nLoadCredential=amqp-url:x.amqp-url\n";
        assert_eq!(
            unit(text).command(),
            "systemd-run --quiet --pipe --wait --collect -p User=apollonia -p SupplementaryGroups='audio video' \
             -p StateDirectory=apollonia-ingestor/music -p StateDirectoryMode=0750 -p EnvironmentFile=-/etc/x.env \
             -p EnvironmentFile=/etc/x/music.env -p LoadCredential=amqp-url:x.amqp-url -E A='b c' -E D=e -E F='g\"h' \
             apollonia-ingestor doctor"
        );
    }
}
