//! What each errno means of a file or a directory: the one table that decides it, whichever call met it.
//!
//! A name that is not there any more, one that is no file, and one that cannot be had for the moment are three different
//! things: the first two are the end of the matter, the third is remembered and tried again. Taking the third for the first
//! is how other watchers lose whole trees, so only ENOENT and ENOTDIR mean gone.

use rustix::io::Errno;

/// The call that met it. The same number means different things to different calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// open(2) and openat2(2), of a file or a directory, and realpath(3) of what a link leads to.
    Open,
    /// stat(2), statx(2), fstat(2).
    Stat,
    /// fcntl(2) with `F_SETLEASE`.
    Lease,
    /// read(2), pread(2), and the same through a ring.
    Read,
    /// getdents64(2).
    List,
    /// inotify_add_watch(2), of a directory that is open.
    Watch,
}

/// What it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing of that name is there any more.
    Gone,
    /// Something is there that is no regular file, and no directory where one was asked for.
    NotRegular,
    /// A symbolic link is there, which the call was told not to follow.
    Link,
    /// It leads out of the data directory, or to another file system.
    LeadsOut,
    /// Somebody has it open for writing, or was renaming it just then.
    Writer,
    /// The service's own want for the moment: descriptors, memory, watches. Never the file's fault.
    Ours,
    /// It is there and cannot be had for the moment: rights, the disk, the network. It is remembered and tried again.
    Theirs,
    /// Trying again would meet the same: the call itself is wrong for this kernel or this path.
    Broken,
}

/// What `errno` of `call` means. One that the manual pages of these calls don't name is [`Meaning::Theirs`]: file systems
/// return numbers of their own, and to try again costs little where giving up costs a file.
#[must_use]
pub fn meaning(call: Call, errno: Errno) -> Meaning {
    use Call::{Lease, List, Open, Read, Stat, Watch};
    match (call, errno) {
        // A watch is asked for by the descriptor of an open directory: /proc itself is what is missing then.
        (Watch, Errno::NOENT | Errno::NOTDIR) => Meaning::Theirs,
        (_, Errno::NOENT | Errno::NOTDIR) => Meaning::Gone,
        // Opening a socket is ENXIO, a node without a driver ENXIO or ENODEV (open(2)).
        (Open, Errno::NXIO | Errno::NODEV | Errno::ISDIR) | (Read, Errno::ISDIR) => Meaning::NotRegular,
        // Links were forbidden (openat2(2), RESOLVE_NO_SYMLINKS; open(2), O_NOFOLLOW).
        (Open, Errno::LOOP) => Meaning::Link,
        // stat(2) that follows: they lead in a circle.
        (Stat, Errno::LOOP) => Meaning::NotRegular,
        (Open, Errno::XDEV) => Meaning::LeadsOut,
        // A write lease that we would have to wait for (fcntl(2)), a rename that crossed our look-up (openat2(2)), a writer
        // in the way of a read lease (fcntl(2)).
        (Open | Lease, Errno::AGAIN) => Meaning::Writer,
        // The last: the ring had no thread for it, or took it back at the end (io_uring_enter(2)).
        (
            _,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN | Errno::INTR | Errno::CANCELED,
        ) => Meaning::Ours,
        // The user's limit of watches (inotify_add_watch(2)).
        (Watch, Errno::NOSPC) => Meaning::Ours,
        // No lease on this kind of file system (fcntl(2)).
        (Lease, Errno::INVAL) => Meaning::Broken,
        // A call or a flag that this kernel does not have, or a seccomp filter does not let through; a path longer than the
        // kernel takes.
        (_, Errno::NOSYS | Errno::INVAL | Errno::TOOBIG | Errno::BADF | Errno::FAULT | Errno::NAMETOOLONG) => {
            Meaning::Broken
        }
        (_, Errno::OVERFLOW) => Meaning::Broken,
        // EACCES, EPERM, EIO, ESTALE, ETIMEDOUT, EHOSTDOWN, ENOTCONN (a FUSE daemon that died), EBUSY, ENOKEY (fscrypt),
        // EUCLEAN and EBADMSG (checksums of the file system), EREMOTEIO, and what nobody has thought of.
        (Open | Stat | Lease | Read | List | Watch, _) => Meaning::Theirs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: [Call; 6] = [Call::Open, Call::Stat, Call::Lease, Call::Read, Call::List, Call::Watch];

    /// Each errno that the manual pages of these calls name, and those of network and user-space file systems: what it
    /// means for open, stat, lease, read, getdents and a watch, in this order.
    #[test]
    fn each_errno_of_each_call_means_what_the_manual_pages_say() {
        use Meaning::{Broken, Gone, LeadsOut, Link, NotRegular, Ours, Theirs, Writer};
        let table = [
            (Errno::NOENT, [Gone, Gone, Gone, Gone, Gone, Theirs]),
            (Errno::NOTDIR, [Gone, Gone, Gone, Gone, Gone, Theirs]),
            (Errno::NXIO, [NotRegular, Theirs, Theirs, Theirs, Theirs, Theirs]),
            (Errno::NODEV, [NotRegular, Theirs, Theirs, Theirs, Theirs, Theirs]),
            (Errno::ISDIR, [NotRegular, Theirs, Theirs, NotRegular, Theirs, Theirs]),
            (Errno::LOOP, [Link, NotRegular, Theirs, Theirs, Theirs, Theirs]),
            (Errno::XDEV, [LeadsOut, Theirs, Theirs, Theirs, Theirs, Theirs]),
            (Errno::AGAIN, [Writer, Ours, Writer, Ours, Ours, Ours]),
            (Errno::INTR, [Ours; 6]),
            (Errno::MFILE, [Ours; 6]),
            (Errno::NFILE, [Ours; 6]),
            (Errno::NOMEM, [Ours; 6]),
            (Errno::NOBUFS, [Ours; 6]),
            (Errno::CANCELED, [Ours; 6]),
            (Errno::NOSPC, [Theirs, Theirs, Theirs, Theirs, Theirs, Ours]),
            (Errno::INVAL, [Broken; 6]),
            (Errno::NOSYS, [Broken; 6]),
            (Errno::TOOBIG, [Broken; 6]),
            (Errno::BADF, [Broken; 6]),
            (Errno::FAULT, [Broken; 6]),
            (Errno::NAMETOOLONG, [Broken; 6]),
            (Errno::OVERFLOW, [Broken; 6]),
            (Errno::ACCESS, [Theirs; 6]),
            (Errno::PERM, [Theirs; 6]),
            (Errno::IO, [Theirs; 6]),
            (Errno::STALE, [Theirs; 6]),
            (Errno::TIMEDOUT, [Theirs; 6]),
            (Errno::HOSTDOWN, [Theirs; 6]),
            (Errno::HOSTUNREACH, [Theirs; 6]),
            (Errno::NOTCONN, [Theirs; 6]),
            (Errno::CONNREFUSED, [Theirs; 6]),
            (Errno::REMOTEIO, [Theirs; 6]),
            (Errno::BUSY, [Theirs; 6]),
            (Errno::TXTBSY, [Theirs; 6]),
            (Errno::NOKEY, [Theirs; 6]),
            (Errno::UCLEAN, [Theirs; 6]),
            (Errno::BADMSG, [Theirs; 6]),
            (Errno::NOLCK, [Theirs; 6]),
            (Errno::OPNOTSUPP, [Theirs; 6]),
        ];
        for (errno, meanings) in table {
            for (call, expected) in CALLS.into_iter().zip(meanings) {
                assert_eq!(meaning(call, errno), expected, "{errno:?} of {call:?}");
            }
        }
    }

    /// Linux has numbers up to 4095 (include/linux/err.h, MAX_ERRNO).
    #[test]
    fn no_errno_but_two_means_gone() {
        for call in CALLS {
            let gone = (1..=4095).map(Errno::from_raw_os_error).filter(|&errno| meaning(call, errno) == Meaning::Gone);
            let expected = if call == Call::Watch { vec![] } else { vec![Errno::NOENT, Errno::NOTDIR] };
            assert_eq!(gone.collect::<Vec<_>>(), expected, "{call:?}");
        }
    }
}
