//! Where the connection string comes from: a setting, or files that hold it or its password (secrets of Docker and
//! Kubernetes, credentials of systemd).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::parts::{NEXT, Parts};
use crate::cli::{AMQP_URL_DEFAULT, AmqpSettings};
use crate::error::Error;
use crate::files::whole::read_whole;

/// The longest secret that is read, in bytes: no login needs more, and a file that is longer is another one.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

const URL: &str = "AMQP_CONNECTION_STRING (--amqp-url)";

const URL_FILE: &str = "AMQP_CONNECTION_STRING_FILE (--amqp-url-file)";

const PASSWORD_FILE: &str = "AMQP_PASSWORD_FILE (--amqp-password-file)";

/// The user of a connection string that names none, as the client has it.
const USER_DEFAULT: &str = "guest";

/// A connection string with its password, and the file that it was read from.
pub(super) struct Given {
    text: String,
    /// `None`: it is a setting's value.
    pub(super) file: Option<PathBuf>,
}

impl Given {
    pub(super) fn with_password(&self) -> &str {
        &self.text
    }

    /// The refusal of what the file holds, which does not show it: another secret may be in it by mistake.
    pub(super) fn refusal(file: &Path, cause: &str) -> Error {
        unusable(URL_FILE, file, &format!("its connection string is of no use: {cause}"), NEXT)
    }
}

/// `Debug` does not show the password.
impl fmt::Debug for Given {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Given").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The file of a credential that the service manager hands over, where there is one (systemd.exec(5), LoadCredential=).
pub(super) fn credential(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty())?;
    Some(Path::new(&directory).join(name)).filter(|file| file.symlink_metadata().is_ok())
}

/// Reads the connection string, without the password of a file of its own. A setting wins over a credential.
///
/// # Errors
/// [`Error::Usage`]: both the string and its file are set, or the file cannot be used.
pub(super) fn connection_string(
    settings: &AmqpSettings,
    credential: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<Given, Error> {
    let file = match (&settings.url, &settings.url_file) {
        (Some(_), Some(_)) => {
            return Err(Error::usage(format!("{URL} and {URL_FILE} are both set"), "leave one of them out"));
        }
        (Some(url), None) => return Ok(Given { text: url.with_password().to_owned(), file: None }),
        (None, Some(file)) => file.clone(),
        (None, None) => match credential("amqp-url") {
            Some(file) => file,
            None => return Ok(Given { text: AMQP_URL_DEFAULT.to_owned(), file: None }),
        },
    };
    Ok(Given { text: read(URL_FILE, &file, "the connection string")?, file: Some(file) })
}

/// The connection string with the password of its own file, where there is one. The string has been checked.
///
/// # Errors
/// [`Error::Usage`]: the string holds a password too, or the file cannot be used.
pub(super) fn with_password_file(
    given: Given,
    settings: &AmqpSettings,
    credential: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<Given, Error> {
    let by_default = settings.url.is_none() && given.file.is_none();
    let has_password = !by_default && Parts::of(&given.text).login().is_some_and(|(_, password)| !password.is_empty());
    let file = match &settings.password_file {
        Some(_) if has_password => {
            let string = if given.file.is_some() { URL_FILE } else { URL };
            return Err(Error::usage(
                format!("{PASSWORD_FILE}: the connection string of {string} holds a password, too"),
                "leave one of them out",
            ));
        }
        Some(file) => Some(file.clone()),
        None if has_password => None,
        None => credential("amqp-password"),
    };
    let Some(file) = file else { return Ok(given) };
    let password = read(PASSWORD_FILE, &file, "the password")?;
    let parts = Parts::of(&given.text);
    let user = parts.login().map_or(USER_DEFAULT, |(user, _)| user);
    let text = format!(
        "{}{user}:{}@{}{}",
        parts.scheme,
        utf8_percent_encode(&password, NON_ALPHANUMERIC),
        parts.hosts.join(","),
        parts.rest
    );
    Ok(Given { text, ..given })
}

/// Reads a secret, without one newline at its end. No error shows what the file holds.
fn read(setting: &str, file: &Path, what: &str) -> Result<String, Error> {
    let refuse = |cause: &str, next: &str| unusable(setting, file, cause, next);
    let next = format!("write {what} into it, and nothing else");
    let bytes = read_whole(file, SECRET_BYTES_MAX).map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::FileTooLarge => &next,
            _ => "name a file that this user may read",
        };
        Error::of_setting(format!("{setting}: {file:?} cannot be read"), error, |cause| refuse(&cause, next))
    })?;
    let mut secret = String::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8", &next))?;
    if secret.ends_with('\n') {
        secret.pop();
        if secret.ends_with('\r') {
            secret.pop();
        }
    }
    if secret.is_empty() { Err(refuse("it is empty", &next)) } else { Ok(secret) }
}

fn unusable(setting: &str, file: &Path, cause: &str, next: &str) -> Error {
    Error::usage(format!("{setting}: {file:?} cannot be used: {cause}"), next)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use tempfile::TempDir;

    use super::*;
    use crate::address::Broker;
    use crate::cli::Cli;

    struct Files(TempDir);

    impl Files {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
            Self(dir)
        }

        /// A broker of these words, in which `@NAME` is the path of a file; credentials are files too.
        fn broker(&self, words: &[&str]) -> Result<Broker, Error> {
            let path = |word: &&str| word.strip_prefix('@').map_or((*word).into(), |name| self.0.path().join(name));
            let words = [PathBuf::from("apollonia-ingestor")].into_iter().chain(words.iter().map(path));
            let settings = Cli::parse_from(words).settings.amqp;
            Broker::read_from(&settings, &|name| Some(self.0.path().join(name)).filter(|file| file.exists()))
        }

        #[track_caller]
        fn password(&self, words: &[&str]) -> String {
            let broker = self.broker(words).unwrap();
            assert!(!format!("{broker} {broker:?}").contains("p%40ss"), "{broker:?}");
            let user = broker.addresses()[0].with_password().authority.userinfo;
            format!("{}:{}", user.username, user.password)
        }
    }

    #[test]
    fn a_password_comes_from_its_file_and_a_setting_wins_over_a_credential() {
        let files =
            Files::new(&[("url", b"amqp://u:p@h/\n"), ("pass", "p@ss:/\u{e9}%\n\n".as_bytes()), ("crlf", b"p\r\n")]);
        for (words, login) in [
            (&["--amqp-url-file", "@url"][..], "u:p"),
            (&["--amqp-url", "amqp://u@h,i/v?heartbeat=5", "--amqp-password-file", "@pass"], "u:p@ss:/\u{e9}%\n"),
            (&["--amqp-url", "amqp://u:@[::1]:1", "--amqp-password-file", "@crlf"], "u:p"),
            (&["--amqp-url", "amqp://h", "--amqp-password-file", "@crlf"], "guest:p"),
            (&["--amqp-password-file", "@crlf"], "guest:p"),
            (&[], "guest:guest"),
        ] {
            assert_eq!(files.password(words), login, "{words:?}");
        }
        let files = Files::new(&[("amqp-url", b"amqp://u@h"), ("amqp-password", b"p"), ("pass", b"q")]);
        assert_eq!(files.password(&[]), "u:p");
        assert_eq!(files.password(&["--amqp-password-file", "@pass"]), "u:q");
        assert_eq!(files.password(&["--amqp-url", "amqp://a:b@h"]), "a:b");
        assert_eq!(files.password(&["--amqp-url", "amqp://a@h"]), "a:p");
    }

    #[test]
    fn a_secret_is_as_long_as_its_bound_and_shown_by_nothing() {
        let longest = vec![b's'; 64 * 1024];
        let files = Files::new(&[("longest", &longest)]);
        assert_eq!(files.password(&["--amqp-password-file", "@longest"]).len(), "guest:".len() + longest.len());
        let given = Given { text: "amqp://u:s3cret@h".to_owned(), file: Some("/run/secret".into()) };
        assert_eq!(format!("{given:?}"), r#"Given { file: Some("/run/secret"), .. }"#);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_path_and_without_its_content() {
        let large = vec![b's'; SECRET_BYTES_MAX as usize + 1];
        let files = Files::new(&[
            ("empty", b"\n"),
            ("binary", b"s3cret\xff"),
            ("large", &large),
            ("word", b"s3cret"),
            ("two", b"amqp://u:s3cret@h\namqp://h"),
            ("url", b"amqp://u:s3cret@h"),
        ]);
        let password = ["@empty", "@binary", "@large", "@missing", "@."].map(|file| ["--amqp-password-file", file]);
        let url = ["@empty", "@binary", "@large", "@missing", "@word", "@two"].map(|file| ["--amqp-url-file", file]);
        for words in password.iter().chain(&url) {
            let error = files.broker(words).unwrap_err().to_string();
            let path = files.0.path().join(&words[1][1..]);
            assert!(error.contains(words[0]) && error.contains(path.to_str().unwrap()), "{error}");
            assert!(!error.contains("s3cret") && !error.contains("sss") && error.lines().count() == 1, "{error}");
            let next = match words[1] {
                "@missing" | "@." => "name a file that this user may read",
                "@word" | "@two" => "write amqp://",
                _ => "into it, and nothing else",
            };
            assert!(error.contains(next), "{error}");
        }
        for words in [
            &["--amqp-url-file", "@url", "--amqp-url", "amqp://h"][..],
            &["--amqp-url-file", "@url", "--amqp-password-file", "@word"],
            &["--amqp-url", "amqp://u:s3cret@h", "--amqp-password-file", "@word"],
        ] {
            let error = files.broker(words).unwrap_err().to_string();
            assert!(error.contains("--amqp-url") && error.contains("leave one of them out"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
