//! From what was typed to what is used: every value checked, each stage's few settings in a struct of their own.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use lapin::uri::AMQPUri;
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use tracing::level_filters::LevelFilter;

use crate::cli::{CatchUp, Command, LogFormat, LogLevel, Output, ReadEngine, Settings, Unroutable};
use crate::error::{Error, os_message};
use crate::read::stable::Root;

/// Seconds between heartbeats when the connection string names none: a broker that hangs is noticed after two.
const HEARTBEAT_SECONDS: u16 = 10;

/// What a command runs with.
#[derive(Debug)]
pub struct Config {
    /// How much is logged.
    pub log_level: LevelFilter,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The broker, also when the output is another: `listen` needs it alone.
    pub broker: Broker,
    /// The data directory, opened. `listen` has none.
    pub root: Option<Root>,
    /// Where the ledger lives, if there is one.
    pub state_dir: Option<PathBuf>,
    /// Settings of the watch.
    pub watch: WatchSettings,
    /// Settings of the pipeline.
    pub pipeline: PipelineSettings,
    /// Settings of the control socket.
    pub control: ControlSettings,
    /// `scan` goes into sub-directories.
    pub recursive: bool,
}

/// Settings of the control socket.
#[derive(Debug)]
pub struct ControlSettings {
    /// Where it is.
    pub socket: PathBuf,
    /// It was asked for by name: without it the service does not start.
    pub socket_by_name: bool,
    /// Where the same is answered over TCP.
    pub metrics_address: Option<SocketAddr>,
    /// How long a stage may have work and get no further.
    pub stall: Duration,
}

/// Settings of the watch.
#[derive(Debug, Clone, Copy)]
pub struct WatchSettings {
    /// How long a created file without a close must stay unchanged.
    pub settle: Duration,
    /// What happens to files that are there at start.
    pub catch_up: CatchUp,
    /// How often the directory is looked over without a cause.
    pub rescan: Option<Duration>,
}

/// Settings of the pipeline.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// Hashing threads.
    pub workers: usize,
    /// How files are read.
    pub engine: ReadEngine,
    /// Where messages go.
    pub output: Output,
    /// Settings of the publisher.
    pub publish: PublishSettings,
}

/// Settings of the publisher.
#[derive(Debug, Clone)]
pub struct PublishSettings {
    /// The broker.
    pub broker: Broker,
    /// Unconfirmed messages in flight at most.
    pub window: usize,
    /// What an unroutable message means.
    pub unroutable: Unroutable,
    /// The name that this publisher holds at the broker while it publishes, if it is one of a kind.
    pub publisher: Option<String>,
}

/// The broker's address.
#[derive(Debug, Clone)]
pub struct Broker {
    /// For connecting.
    pub uri: AMQPUri,
    /// For showing: without the password.
    pub shown: String,
}

impl Config {
    /// Checks every setting and opens the data directory.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::DataDirectory`], naming the setting and what is wrong with it.
    pub fn new(settings: Settings, command: Option<&Command>) -> Result<Self, Error> {
        let broker = Broker::parse(&settings.amqp_url)?;
        let root = match command {
            Some(Command::Listen { .. } | Command::Health) => None,
            Some(Command::Scan { dir: Some(dir) }) => Some(open_root(dir)?),
            Some(Command::Scan { dir: None } | Command::Watch) | None => Some(open_root(&settings.data_dir)?),
        };
        let watches = matches!(command, Some(Command::Watch) | None);
        if settings.recursive && watches {
            return Err(Error::Usage(
                "--recursive (INGESTOR_RECURSIVE): only `scan` goes into sub-directories so far; run one watch a directory".into(),
            ));
        }
        if let (Some(state_dir), Some(root)) = (&settings.state_dir, &root)
            && watches
        {
            refuse_inside(state_dir, root)?;
        }
        let catch_up = match (settings.catch_up, &settings.state_dir) {
            (Some(CatchUp::Changed), None) => {
                return Err(Error::Usage(
                    "--catch-up (INGESTOR_CATCH_UP): `changed` needs a ledger to compare with; set --state-dir (STATE_DIRECTORY)".into(),
                ));
            }
            (Some(chosen), _) => chosen,
            (None, Some(_)) => CatchUp::Changed,
            (None, None) => CatchUp::None,
        };
        let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            log_level: match settings.log_level {
                LogLevel::Trace => LevelFilter::TRACE,
                LogLevel::Debug => LevelFilter::DEBUG,
                LogLevel::Info => LevelFilter::INFO,
                LogLevel::Warn => LevelFilter::WARN,
                LogLevel::Error => LevelFilter::ERROR,
            },
            log_format: settings.log_format,
            broker: broker.clone(),
            root,
            state_dir: settings.state_dir,
            watch: WatchSettings {
                settle: Duration::from_millis(settings.settle_ms),
                catch_up,
                rescan: (settings.rescan_seconds > 0).then(|| Duration::from_secs(settings.rescan_seconds.into())),
            },
            pipeline: PipelineSettings {
                workers: settings.workers.map_or(cpus, |workers| workers as usize),
                engine: settings.read_engine,
                output: settings.output,
                publish: PublishSettings {
                    broker,
                    window: settings.confirm_window as usize,
                    unroutable: settings.unroutable,
                    publisher: None,
                },
            },
            control: ControlSettings {
                socket_by_name: settings.control_socket.is_some(),
                socket: settings.control_socket.unwrap_or_else(default_socket),
                metrics_address: settings.metrics_address,
                stall: Duration::from_secs(settings.stall_seconds.into()),
            },
            recursive: settings.recursive,
        })
    }
}

/// Where systemd gives the service a directory of its own (systemd.exec(5), RuntimeDirectory=), else one for each user.
fn default_socket() -> PathBuf {
    match std::env::var_os("RUNTIME_DIRECTORY").filter(|given| !given.is_empty()) {
        // More than one are separated by colons; the first is ours.
        Some(given) => {
            let first = given.as_bytes().split(|&byte| byte == b':').next().unwrap_or_default();
            Path::new(OsStr::from_bytes(first)).join("ingestor.sock")
        }
        None => PathBuf::from(format!("/tmp/apollonia-ingestor-{}.sock", rustix::process::geteuid().as_raw())),
    }
}

impl Broker {
    fn parse(typed: &str) -> Result<Self, Error> {
        let refuse = |cause: &str| {
            Error::Usage(format!(
                "AMQP_CONNECTION_STRING (--amqp-url): {:?} cannot be used: {cause}; write amqp://USER:PASSWORD@HOST:PORT/VHOST",
                mask_password(typed)
            ))
        };
        let url = url::Url::parse(typed).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return Err(refuse("the scheme must be amqp or amqps"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(refuse("it names no host"));
        }
        if url.path().trim_start_matches('/').contains('/') {
            return Err(refuse("a virtual host's `/` is written %2f"));
        }
        let mut uri: AMQPUri = typed.parse().map_err(|error: String| refuse(&error.replace(typed, "it")))?;
        if let Some(url::Host::Ipv6(address)) = url.host() {
            uri.authority.host = address.to_string();
        }
        // "amqp://host:port/" names the virtual host "/" for every client but this one, where it would be "".
        if uri.vhost.is_empty() {
            uri.vhost = "/".to_owned();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        let shown = mask_password(typed);
        Ok(Self { uri, shown })
    }
}

/// The connection string with its password replaced, whether or not it parses: what stands between the
/// first `:` of the user information and the last `@`. Where the host was forgotten, what stands in a port's
/// place and is no number.
fn mask_password(typed: &str) -> String {
    let start = typed.find("://").map_or(0, |at| at + 3);
    let authority = &typed[start..];
    let secret = match authority.rfind('@') {
        Some(end) => authority[..end].find(':').map(|colon| (colon + 1, end)),
        None => {
            let end = authority.find('/').unwrap_or(authority.len());
            let colon = authority[..end].rfind(':').map(|colon| (colon + 1, end));
            colon.filter(|&(from, to)| !authority[from..to].bytes().all(|byte| byte.is_ascii_digit() || byte == b']'))
        }
    };
    match secret {
        Some((from, to)) => format!("{}***{}", &typed[..start + from], &authority[to..]),
        None => typed.to_owned(),
    }
}

fn open_root(path: &Path) -> Result<Root, Error> {
    let refuse = |cause: String, next| Error::DataDirectory { path: path.to_owned(), cause, next };
    let real = std::fs::canonicalize(path).map_err(|error| {
        let next = match error.kind() {
            std::io::ErrorKind::NotFound => "create it, or name another directory",
            _ => "give this user the right to reach it, or name another directory",
        };
        refuse(os_message(&error), next)
    })?;
    let dir = openat(rustix::fs::CWD, &real, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| match errno {
            rustix::io::Errno::NOTDIR => {
                refuse("it is not a directory".into(), "name the directory that the files land in")
            }
            _ => refuse(os_message(&errno.into()), "give this user the right to read it (r-x), or run as another user"),
        })?;
    // Without x on the directory its names can be listed and nothing in it opened.
    statat(&dir, ".", AtFlags::empty()).map_err(|errno| {
        refuse(os_message(&errno.into()), "give this user the right to search it (r-x), or run as another user")
    })?;
    Ok(Root::new(dir, real.as_os_str().as_bytes()))
}

/// A ledger among the files that it is about would change with each of its own changes.
fn refuse_inside(state_dir: &Path, root: &Root) -> Result<(), Error> {
    // It need not exist yet; what exists of its path tells where it will be.
    let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    match absolute.ancestors().find_map(|ancestor| std::fs::canonicalize(ancestor).ok()) {
        Some(real) if real.starts_with(root.path()) => Err(Error::StateDirectory {
            path: state_dir.to_owned(),
            cause: "it lies in the data directory".to_owned(),
            next: "name a directory outside of it",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_path_is_the_default_virtual_host() {
        for typed in ["amqp://h", "amqp://h:5672/", "amqp://h/%2f"] {
            assert_eq!(Broker::parse(typed).unwrap().uri.vhost, "/", "{typed}");
        }
        assert_eq!(Broker::parse("amqp://h/jobs").unwrap().uri.vhost, "jobs");
        assert_eq!(Broker::parse("amqp://[::1]:5672/").unwrap().uri.authority.host, "::1");
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = [
            "amqp://u:s3cret@h/",
            "http://u:s3cret@h",
            "amqp://u:s3cret@:x",
            "u:s3cret@h",
            "amqp://u:a@s3cret@h/",
            "amqp://u:s3cret",
        ];
        for typed in shown {
            assert!(!mask_password(typed).contains("s3cret"), "{typed}");
            if let Err(error) = Broker::parse(typed) {
                assert!(!error.to_string().contains("s3cret"), "{error}");
            }
        }
        assert_eq!(mask_password("amqp://u:p@h:1/v"), "amqp://u:***@h:1/v");
        for typed in ["amqp://h:5672/v", "amqp://[::1]", "amqp://[::1]:5672/", "amqp://h"] {
            assert_eq!(mask_password(typed), typed);
        }
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        for typed in
            ["", "localhost", "http://h/", "amqp://", "amqp://h:notaport/", "amqp://h/a/b", "amqp://h?heartbeat=x"]
        {
            assert!(matches!(Broker::parse(typed), Err(Error::Usage(_))), "{typed}");
        }
    }

    /// Connection strings and what looks like them: their parts in any order.
    fn parts() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "amqp",
            "amqps",
            "AMQP",
            "://",
            ":",
            "/",
            "//",
            "@",
            "[",
            "]",
            "::1",
            "127.0.0.1",
            "host",
            "5672",
            "99999",
            "%2f",
            "%",
            "%ff",
            "?",
            "heartbeat=",
            "auth_mechanism=",
            "plain",
            "&",
            "#",
            "\\",
            " ",
            "\t",
            "é",
            "\u{1f3b5}",
            "..",
            "-",
        ]);
        prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
    }

    /// Letters that stand in no other part of a connection string and in no error, and all that a URL gives a meaning.
    fn password() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "Z", "J", "K", "%5a", "@", ":", "%40", "%3A", "%", "%zz", "/", "?", "#", "[", "]", "&", "=", "\\", " ",
            "\"", "é",
        ]);
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
        #[test]
        fn any_string_is_a_broker_or_is_refused_by_name(typed in prop_oneof![3 => parts(), 1 => any::<String>()]) {
            match Broker::parse(&typed) {
                Ok(broker) => prop_assert_eq!(broker.shown, mask_password(&typed)),
                Err(error) => prop_assert!(error.to_string().starts_with("AMQP_CONNECTION_STRING (--amqp-url): "), "{error}"),
            }
        }

        #[test]
        fn no_password_is_shown_wherever_it_stands(
            scheme in prop::sample::select(vec!["amqp", "amqps", "http", "AMQP", " amqp", "1"]),
            user in prop::sample::select(vec!["", "user", "user%40example", "user@example", "é"]),
            password in password(),
            host in prop::sample::select(vec!["host", "127.0.0.1", "[::1]", "[fe80::a]", "[::", "", "host name", "%ff"]),
            port in prop::sample::select(vec!["", ":", ":5672", ":99999", ":port"]),
            rest in prop::sample::select(vec!["", "/", "/v%2fhost", "/a/b", "?heartbeat=5", "/v?heartbeat=x", "/v#here"]),
        ) {
            let typed = format!("{scheme}://{user}:{password}@{host}{port}{rest}");
            let masked = format!("{scheme}://{user}:***@{host}{port}{rest}");
            prop_assert_eq!(mask_password(&typed), &masked[..]);
            match Broker::parse(&typed) {
                Ok(broker) => prop_assert_eq!(broker.shown, masked),
                Err(error) => {
                    let told = error.to_string();
                    prop_assert!(!["Z", "J", "K", "%5a", "%3A"].iter().any(|secret| told.contains(secret)), "{told}");
                }
            }
        }

        /// What a URL may hold reaches the broker as it was meant.
        #[test]
        fn a_percent_encoded_login_is_understood(
            user in "[a-z@:/ é]{1,8}",
            password in ".{1,12}",
            host in prop::sample::select(vec!["host", "127.0.0.1", "[::1]"]),
        ) {
            let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let broker = Broker::parse(&format!("amqp://{}:{}@{host}:1/", encode(&user), encode(&password))).unwrap();
            let login = broker.uri.authority.userinfo;
            prop_assert_eq!((login.username, login.password), (user, password));
            prop_assert_eq!(broker.uri.authority.host, host.trim_matches(['[', ']']));
            prop_assert_eq!(broker.shown.matches("***").count(), 1);
        }
    }
}
