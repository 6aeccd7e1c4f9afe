//! A connection string divided into its parts, without a look at what they are.

/// The next step where a connection string cannot be used.
pub(super) const NEXT: &str = "write amqp://USER:PASSWORD@HOST:PORT/VHOST";

/// A connection string, divided.
pub(super) struct Parts<'a> {
    /// Up to `://`.
    pub(super) scheme: &'a str,
    /// User and password, without the `@` behind them.
    pub(super) login: Option<&'a str>,
    pub(super) hosts: Vec<&'a str>,
    /// Virtual host and query.
    pub(super) rest: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn of(typed: &'a str) -> Self {
        let (scheme, behind) = typed.split_at(typed.find("://").map_or(0, |at| at + 3));
        let (authority, rest) = behind.split_at(behind.find(['/', '?', '#']).unwrap_or(behind.len()));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        Self { scheme, login, hosts: hosts.split(',').collect(), rest }
    }

    /// User and password, where there is one of them.
    pub(super) fn login(&self) -> Option<(&'a str, &'a str)> {
        self.login.map(|login| login.split_once(':').unwrap_or((login, "")))
    }

    /// The connection string with this host alone.
    pub(super) fn with_host(&self, host: &str) -> String {
        let (login, at) = self.login.map_or(("", ""), |login| (login, "@"));
        format!("{}{login}{at}{host}{}", self.scheme, self.rest)
    }
}
