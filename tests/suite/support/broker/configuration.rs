//! What a node reads at boot.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use crate::support::certificates::Authority;

/// The largest message that a node takes, in bytes: a message that is larger has long paths of control characters.
pub const MESSAGE_MAX: usize = 65_536;

/// The user whose certificates log in without a password.
pub const CERTIFIED: &str = "certified";

/// Salted SHA-256 of the password `guest`, as `rabbitmqctl hash_password` prints it.
const GUEST_PASSWORD_HASH: &str = "AQIDBEMMOXwY6PKx/JKP9PAqfsb4ozuD0Ta3pxxa9gEYBMmD";

/// Writes what the node reads at boot and gives it to the user that runs it. Returns the command prefix that changes to
/// that user, because RabbitMQ should not run as root. Where there is no such user, or no right to change to it, the
/// node runs as the user that runs the tests.
pub(super) fn write(home: &Path, vhosts: usize, tls: &str) -> io::Result<String> {
    let definitions_file = home.join("definitions.json");
    fs::write(&definitions_file, definitions(0..vhosts).to_string())?;
    fs::write(
        home.join("rabbitmq.conf"),
        format!(
            "load_definitions = {}\nloopback_users = none\nlog.console = false\n\
             disk_free_limit.absolute = 1MB\nmax_message_size = {MESSAGE_MAX}\n{tls}",
            definitions_file.display()
        ),
    )?;
    fs::write(home.join("enabled_plugins"), "[rabbitmq_auth_mechanism_ssl].\n")?;
    fs::write(home.join("rabbitmq-env.conf"), "")?;

    let Some(uid) = rabbitmq_uid().filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(String::new());
    };
    std::os::unix::fs::chown(home, Some(uid), None)?;
    for entry in fs::read_dir(home)? {
        std::os::unix::fs::chown(entry?.path(), Some(uid), None)?;
    }
    Ok("setpriv --reuid rabbitmq --regid rabbitmq --clear-groups".into())
}

/// Virtual hosts of these numbers, in which both users may do everything.
pub(super) fn definitions(vhosts: Range<usize>) -> serde_json::Value {
    let vhosts: Vec<String> = vhosts.map(|number| format!("t{number}")).collect();
    let users = ["guest", CERTIFIED].map(|name| {
        serde_json::json!({
            "name": name,
            "password_hash": GUEST_PASSWORD_HASH,
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": "administrator",
        })
    });
    let permission = |user: &str, vhost: &str| serde_json::json!({ "user": user, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*" });
    let of_both = |vhost: &String| ["guest", CERTIFIED].map(|user| permission(user, vhost));
    serde_json::json!({
        "users": users,
        "vhosts": vhosts.iter().map(|name| serde_json::json!({ "name": name })).collect::<Vec<_>>(),
        "permissions": vhosts.iter().flat_map(of_both).collect::<Vec<_>>(),
    })
}

/// A TLS listener beside the plain one, and logging in by a certificate's common name.
pub(super) fn tls(home: &Path, port: u16, authority: &Authority, demanding: bool) -> String {
    let authority_file = authority.file(home);
    let [certificate, key] = authority.certify("node", &["localhost"]).files(home);
    format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\n\
         ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = {demanding}\n\
         auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
        authority_file.display(),
        certificate.display(),
        key.display()
    )
}

fn rabbitmq_uid() -> Option<u32> {
    let output = Command::new("id").args(["-u", "rabbitmq"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
