//! Small files that a flag or a variable names and that are read as a whole: secrets, certificates, settings.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads a regular file of at most so many bytes. Anything else would hold up the start or fill the memory: a FIFO that nobody
/// writes to, a device that has no end.
///
/// # Errors
/// It cannot be opened or read; it is no regular file; it is longer ([`io::ErrorKind::FileTooLarge`]).
pub fn read_whole(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Before it is opened, because opening a device can have effects, and again after it, because the name can lead to
    // another file by then, which must not block.
    check_regular(&fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    check_regular(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn check_regular(file: &fs::Metadata) -> io::Result<()> {
    if file.is_file() { Ok(()) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_regular_file_within_the_bound_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        assert_eq!(read_whole(&at("file"), 5).unwrap(), b"12345");
        let long = read_whole(&at("file"), 4).unwrap_err();
        assert_eq!(
            (long.kind(), long.to_string().as_str()),
            (io::ErrorKind::FileTooLarge, "it is longer than 4 bytes")
        );
        assert_eq!(read_whole(&at("missing"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for other in [at("fifo").as_path(), dir.path(), Path::new("/dev/zero")] {
            assert_eq!(read_whole(other, 5).unwrap_err().to_string(), "it is not a regular file", "{other:?}");
        }
    }
}
