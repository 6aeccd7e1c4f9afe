//! What each errno of a call on a file or a directory means: the one table that decides it.
//!
//! A name that is gone, one that is no regular file, and one that cannot be read for the moment are different: the first
//! two are final, the third is remembered and tried again. Other watchers lose whole trees because they take the third for
//! the first, so only ENOENT and ENOTDIR mean gone here.

use rustix::io::Errno;

/// The call that failed. The same errno means different things for different calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// open(2) and openat2(2) of a file or a directory, and realpath(3) of a link's target.
    Open,
    /// stat(2), statx(2), fstat(2).
    Stat,
    /// fcntl(2) with `F_SETLEASE`.
    Lease,
    /// read(2) and pread(2), also through a ring.
    Read,
    /// getdents64(2).
    List,
    /// inotify_add_watch(2) of an open directory.
    Watch,
}

/// What an errno means for the file or the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The name does not exist any more.
    Gone,
    /// The name is neither a regular file nor, where a directory was asked for, a directory.
    NotRegular,
    /// The name is a symbolic link, which the call was not to follow.
    Link,
    /// The path leads out of the data directory or to another file system.
    LeadsOut,
    /// Somebody has the file open for writing, or renamed something on its path at that moment.
    Writer,
    /// The service lacks descriptors, memory or watches for the moment. The file is not at fault.
    Ours,
    /// The file exists and cannot be read for the moment: rights, the disk, the network. It is tried again.
    Theirs,
    /// The call is wrong for this kernel or this path, so trying again would fail in the same way.
    Broken,
}

/// What `errno` of `call` means. An errno that the manual pages of these calls do not name is [`Meaning::Theirs`], because
/// file systems return numbers of their own, and another try costs little while a wrong end costs a file.
#[must_use]
pub fn meaning(call: Call, errno: Errno) -> Meaning {
    use Call::{Lease, List, Open, Read, Stat, Watch};
    match (call, errno) {
        // A watch is added by the descriptor of an open directory, so it is /proc itself that is missing.
        (Watch, Errno::NOENT | Errno::NOTDIR) => Meaning::Theirs,
        (_, Errno::NOENT | Errno::NOTDIR) => Meaning::Gone,
        // Opening a socket is ENXIO, a node without a driver ENXIO or ENODEV (open(2)).
        (Open, Errno::NXIO | Errno::NODEV | Errno::ISDIR) | (Read, Errno::ISDIR) => Meaning::NotRegular,
        // Links were forbidden (openat2(2), RESOLVE_NO_SYMLINKS; open(2), O_NOFOLLOW).
        (Open, Errno::LOOP) => Meaning::Link,
        // stat(2) follows links: these form a circle.
        (Stat, Errno::LOOP) => Meaning::NotRegular,
        (Open, Errno::XDEV) => Meaning::LeadsOut,
        // Another's write lease (fcntl(2)), a rename during the path's resolution (openat2(2)), or a writer that prevents a
        // read lease (fcntl(2)).
        (Open | Lease, Errno::AGAIN) => Meaning::Writer,
        // ECANCELED: the ring had no thread for the operation, or canceled it at the end (io_uring_enter(2)).
        (
            _,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN | Errno::INTR | Errno::CANCELED,
        ) => Meaning::Ours,
        // The user's limit of watches (inotify_add_watch(2)).
        (Watch, Errno::NOSPC) => Meaning::Ours,
        // No lease on this kind of file system (fcntl(2)).
        (Lease, Errno::INVAL) => Meaning::Broken,
        // A call or a flag that this kernel does not have or a seccomp filter refuses, or a path longer than the kernel
        // accepts.
        (_, Errno::NOSYS | Errno::INVAL | Errno::TOOBIG | Errno::BADF | Errno::FAULT | Errno::NAMETOOLONG) => {
            Meaning::Broken
        }
        (_, Errno::OVERFLOW) => Meaning::Broken,
        // EACCES, EPERM, EIO, ESTALE, ETIMEDOUT, EHOSTDOWN, ENOTCONN (a FUSE daemon that died), EBUSY, ENOKEY (fscrypt),
        // EUCLEAN and EBADMSG (checksums of the file system), EREMOTEIO, and any other.
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
