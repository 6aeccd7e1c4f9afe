//! The control socket as a file: what is at a path, whom to believe there, and this process's own.
//!
//! Its default place can be a directory that all users write to. So a socket there may be anybody's: its owner is looked at
//! before a word of it counts, and no call here waits for it (a connection to a Unix socket is there at once or never).

use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use crate::advice;
use crate::config::SocketPlaces;
use crate::error::{Error, os_message};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// What is at a path.
enum There {
    Nothing,
    /// The kernel refused to show it.
    Unseen(io::Error),
    /// A file of another kind.
    Other(&'static str),
    Socket {
        owner: u32,
        listener: Listener,
    },
}

/// Who listens at a socket.
enum Listener {
    /// A process of this user has taken the connection, which does not block.
    Of(u32, UnixStream),
    /// Somebody with whom so many connections wait that there is no room for one more.
    Busy,
    /// Nobody: it is left from a process that was killed.
    Nobody,
    /// The kernel refused to tell.
    Unknown(io::Error),
}

fn look(path: &Path) -> There {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => There::Socket { owner: file.uid(), listener: listener(path) },
        Ok(file) => There::Other(kind(file.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
        Err(error) => There::Unseen(error),
    }
}

fn kind(kind: FileType) -> &'static str {
    if kind.is_symlink() {
        "a link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else {
        "a file"
    }
}

fn listener(path: &Path) -> Listener {
    let reached = socket_at(path).and_then(|(socket, address)| {
        connect(&socket, &address)?;
        Ok((socket_peercred(&socket)?.uid.as_raw(), socket.into()))
    });
    match reached {
        Ok((user, stream)) => Listener::Of(user, stream),
        Err(Errno::AGAIN) => Listener::Busy,
        Err(Errno::CONNREFUSED | Errno::NOENT) => Listener::Nobody,
        Err(errno) => Listener::Unknown(errno.into()),
    }
}

/// A socket that does not block, and the address of a path.
fn socket_at(path: &Path) -> rustix::io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok((socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, SocketAddrUnix::new(path)?))
}

/// Checks that the control socket may be made at this path, where a dead process may have left its own.
///
/// # Errors
/// What is at that path, or why the kernel does not show it.
pub fn place_is_free(path: &Path) -> io::Result<()> {
    match look(path) {
        There::Nothing | There::Socket { listener: Listener::Nobody, .. } => Ok(()),
        There::Unseen(error) | There::Socket { listener: Listener::Unknown(error), .. } => Err(error),
        There::Other(kind) => Err(io::Error::other(format!("there is {kind} of that name"))),
        There::Socket { owner, .. } if owner != own_user() => {
            Err(io::Error::other(format!("a socket of user {owner} is there")))
        }
        There::Socket { .. } => Err(io::Error::other("another process answers there")),
    }
}

/// Whether somebody who may be believed listens at the path.
#[must_use]
pub fn is_listened_at(path: &Path) -> bool {
    matches!(look(path), There::Socket { listener: Listener::Of(..) | Listener::Busy, owner } if is_believed(path, owner))
}

/// Connects to the service at the first of the places where a socket is that may be believed. If nobody answers there, a
/// service was killed, and the places behind are not looked at: another service's health would hide that.
///
/// # Errors
/// [`Error::NoService`], with the first thing that was found in place of such a socket; [`Error::System`] where there is no
/// descriptor to ask with.
pub fn reach(places: &SocketPlaces) -> Result<(&Path, UnixStream), Error> {
    let refuse = |path: &Path, cause: String| Error::NoService { socket: path.to_owned(), cause };
    let mut passed = None;
    for path in &places.asked {
        let cause = match look(path) {
            There::Nothing => continue,
            There::Unseen(error) => os_message(&error),
            There::Other(kind) => format!("there is {kind} of that name"),
            There::Socket { owner, .. } if !is_believed(path, owner) => not_believed(owner),
            There::Socket { listener, .. } => match listener {
                Listener::Of(user, _) if !is_believed(path, user) => not_believed(user),
                Listener::Of(_, stream) => return Ok((path, stream)),
                Listener::Nobody => return Err(refuse(path, os_message(&Errno::CONNREFUSED))),
                Listener::Busy => return Err(refuse(path, "too many others wait for an answer there".to_owned())),
                Listener::Unknown(error) if advice::want(&error).is_some() => {
                    return Err(Error::system(format!("the service at {path:?} cannot be asked"), error));
                }
                Listener::Unknown(error) => os_message(&error),
            },
        };
        passed.get_or_insert_with(|| refuse(path, cause));
    }
    let own = places.made.first().map_or(Path::new(""), PathBuf::as_path);
    Err(passed.unwrap_or_else(|| refuse(own, os_message(&Errno::NOENT))))
}

fn not_believed(user: u32) -> String {
    format!("a socket of user {user} is there, who may be anybody: it is not asked")
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether what a user says at this path counts: this user and root, and whoever alone can have put a socket there.
fn is_believed(path: &Path, user: u32) -> bool {
    user == own_user() || user == 0 || belongs_to(path, user)
}

/// Whether the path's directory is this user's, and nobody else but root can have put it or anything in it there. So it is
/// with the runtime directory of a service that has a user of its own.
fn belongs_to(path: &Path, user: u32) -> bool {
    let Some(Ok(directory)) = path.parent().map(fs::canonicalize) else { return false };
    let is_closed = |file: &Metadata| file.mode() & 0o022 == 0 && (file.uid() == user || file.uid() == 0);
    let mut above = directory.ancestors().map(fs::metadata);
    let mut whole = fs::metadata(&directory).is_ok_and(|file| file.uid() == user);
    whole &= above.all(|file| file.is_ok_and(|file| is_closed(&file)));
    whole
}

/// A socket in the file system that this process has made: its path, with its device and inode.
pub struct OwnSocket {
    path: PathBuf,
    file: (u64, u64),
}

impl OwnSocket {
    /// Makes the socket at the first of the paths that is free, and returns the reasons why the earlier ones are not.
    ///
    /// # Errors
    /// The reasons, one for each path.
    pub fn bind_first(paths: &[PathBuf]) -> Result<(Self, UnixListener, Vec<io::Error>), Vec<io::Error>> {
        let mut taken = Vec::new();
        for path in paths {
            match Self::bind(path) {
                Ok((own, listener)) => return Ok((own, listener, taken)),
                Err(cause) => taken.push(cause),
            }
        }
        Err(taken)
    }

    /// Binds under another name and renames, so that it can take the place of a dead process's socket.
    fn bind(path: &Path) -> io::Result<(Self, UnixListener)> {
        place_is_free(path)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let bound = (|| {
            let _ = fs::remove_file(&beside); // left by a killed process that had the same id
            let listener = listen_at(&beside)?;
            let there = fs::symlink_metadata(&beside)?;
            fs::rename(&beside, path)?;
            Ok((Self { path: path.to_owned(), file: (there.dev(), there.ino()) }, listener))
        })();
        bound.inspect_err(|_: &io::Error| drop(fs::remove_file(&beside)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The file gets the socket's mode less the umask (unix(7)), so it is never open to others, and no chmod(2) of a path can be
/// led to another file.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let (socket, address) = socket_at(path)?;
    fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // A socket that a successor has put in its place stays.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn places<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> SocketPlaces {
        let made: Vec<_> = paths.into_iter().cloned().collect();
        SocketPlaces { by_name: false, asked: made.clone(), made }
    }

    #[track_caller]
    fn bound(path: &Path) -> (OwnSocket, UnixListener) {
        OwnSocket::bind(path).unwrap_or_else(|cause| panic!("{path:?}: {cause}"))
    }

    #[test]
    fn only_the_socket_of_a_killed_process_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (own, listener) = bound(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(OwnSocket::bind(&path).is_err_and(|cause| cause.to_string().contains("another process")));
        drop((own, listener));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it removes its socket");
    }

    #[test]
    fn nothing_else_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, directory, fifo] = ["file", "link", "directory", "fifo"].map(|name| dir.path().join(name));
        fs::write(&file, "a file").unwrap();
        let (_own, _listener) = bound(&dir.path().join("target"));
        symlink(dir.path().join("target"), &link).unwrap();
        fs::create_dir(&directory).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (path, kind) in [(&file, "a file"), (&link, "a link"), (&directory, "a directory"), (&fifo, "a FIFO")] {
            assert!(OwnSocket::bind(path).is_err_and(|cause| cause.to_string().contains(kind)), "{kind}");
            let refused = reach(&places([path])).unwrap_err().to_string();
            assert!(refused.contains(kind), "{refused}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"a file");
    }

    #[test]
    fn a_full_queue_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (socket, address) = socket_at(&path).unwrap();
        bind(&socket, &address).unwrap();
        listen(&socket, 0).unwrap();
        let _waiting: Vec<_> = std::iter::repeat_with(|| listener(&path))
            .take_while(|reached| matches!(reached, Listener::Of(..)))
            .collect();
        assert!(place_is_free(&path).is_err() && is_listened_at(&path));
        assert!(reach(&places([&path])).is_err_and(|error| error.to_string().contains("too many others wait")));
    }

    #[test]
    fn the_second_service_takes_the_next_place_and_a_dead_one_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["missing/1.sock", "1.sock", "2.sock"].map(|name| dir.path().join(name));
        let places = places(&paths);
        let bind = || OwnSocket::bind_first(&paths).unwrap_or_else(|taken| panic!("{taken:?}"));
        assert!(reach(&places).is_err_and(|error| error.to_string().contains("missing/1.sock")));
        let (first, listener, taken) = bind();
        assert_eq!((first.path(), taken.len()), (&*paths[1], 1));
        let (second, _second, taken) = bind();
        assert_eq!((second.path(), taken.len()), (&*paths[2], 2));
        assert_eq!(OwnSocket::bind_first(&paths).map(drop).unwrap_err().len(), 3);
        assert_eq!(reach(&places).unwrap().0, paths[1]);
        drop(listener);
        assert!(reach(&places).is_err_and(|error| error.to_string().contains("/1.sock")));
    }

    #[test]
    fn a_directory_that_others_write_to_proves_nothing() {
        let own = own_user();
        // Below /tmp, where everybody could have made it.
        let dir = tempfile::tempdir().unwrap();
        assert!(!belongs_to(&dir.path().join("s"), own + 1) && !belongs_to(Path::new("/tmp/s"), 0));
        assert!(belongs_to(Path::new("/etc/s"), 0) && !belongs_to(Path::new("/etc/s"), own + 1));
        assert!(!belongs_to(Path::new("s"), own + 1) && !belongs_to(Path::new("/"), 0));
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (own, listener) = bound(&path);
        drop(listener);
        let _next = bound(&path);
        drop(own);
        assert!(path.exists());
    }
}
