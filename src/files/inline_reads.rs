//! Whether a ring can read the files of a data directory inline.

use rustix::fs::{Dir, FileType, OFlags, openat};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};

use super::root::{OPEN_FLAGS, Root};

/// Names that are looked at for a file to ask: a directory of other directories alone is not worth a walk.
const NAMES_MAX: usize = 256;

/// File systems without it, by their numbers in statfs(2), for a directory that has no file to ask: tmpfs, ramfs and
/// overlay. Of any other one it is assumed, and without it the ring's threads read: slower, and right.
const WITHOUT: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x794c_7630];

/// Whether the kernel reads a file of the directory without waiting (RWF_NOWAIT, preadv2(2)), as a ring asks it to. Where it
/// cannot, each read goes through one of the ring's own kernel threads, which takes longer than a plain read of what is in
/// memory.
///
/// A network file system is not asked: a read there waits for another host, and the ring's threads are the better place to
/// wait in.
#[must_use]
pub fn can_be_had(root: &Root) -> bool {
    root.is_remote() || ask_a_file(root).unwrap_or_else(|| root.file_system().is_none_or(|it| !WITHOUT.contains(&it)))
}

/// The answer of the first file that is found; `None` where none can be asked.
fn ask_a_file(root: &Root) -> Option<bool> {
    let mut names = Dir::new(root.open_directory(b"").ok()?).ok()?;
    for _ in 0..NAMES_MAX {
        let entry = names.read()?.ok()?;
        if entry.file_type() != FileType::RegularFile {
            continue;
        }
        // The question must not move the file's atime, which its message will hold. Only its owner may ask for that.
        let flags = OPEN_FLAGS | OFlags::NOATIME;
        let Ok(file) = openat(root.as_fd(), entry.file_name(), flags, rustix::fs::Mode::empty()) else { continue };
        let mut byte = [0];
        let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
        return Some(match retry_on_intr(|| preadv2(&file, &mut bytes, 0, ReadWriteFlags::NOWAIT)) {
            // EAGAIN: it can, and what was asked for is not in memory.
            Ok(_) | Err(Errno::AGAIN) => true,
            Err(Errno::OPNOTSUPP) => false,
            Err(_) => continue,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::root::tests::root;

    #[test]
    fn a_file_answers_before_the_kind_of_file_system_does() {
        let (dir, root) = root();
        assert_eq!(ask_a_file(&root), None, "there is none");
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        assert_eq!(ask_a_file(&root), None, "neither of them can be asked");
        std::fs::write(dir.path().join("file"), "content").unwrap();
        let before = std::fs::metadata(dir.path().join("file")).unwrap().accessed().unwrap();
        let answer = ask_a_file(&root);
        assert!(answer.is_some());
        assert_eq!(can_be_had(&root), answer == Some(true));
        assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().accessed().unwrap(), before);
    }
}
