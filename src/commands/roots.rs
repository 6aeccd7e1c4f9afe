//! What `watch`, `scan` and `verify` do with the data directories before their first file.

use std::sync::Arc;
use std::{fs, io};

use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_128;

use crate::cli::DEFAULT_EXCHANGE;
use crate::config::Publisher;
use crate::error::{Error, named, os_message};
use crate::files::lease;
use crate::files::root::{Protection, Root, raise_lease_capability};
use crate::routing::Exchange;

/// How half-written files are recognized, in words: one sentence if it holds for all directories, else one for each way. That of
/// a directory that is not open yet is not known.
pub(super) fn protections(roots: &[Arc<Root>]) -> Vec<String> {
    let mut kinds: Vec<Protection> = Vec::new();
    let roots: Vec<_> = roots.iter().filter(|root| root.is_open()).collect();
    for protection in roots.iter().map(|root| root.protection()) {
        if !kinds.contains(&protection) {
            kinds.push(protection);
        }
    }
    let of_kind = |kind: &Protection| {
        let paths: Vec<_> = roots.iter().filter(|root| root.protection() == *kind).map(|root| root.path()).collect();
        format!("{}: {kind}", named(paths.into_iter()))
    };
    match kinds.as_slice() {
        [same] => vec![same.to_string()],
        kinds => kinds.iter().map(of_kind).collect(),
    }
}

/// Numbers the volumes of the directories, and prepares the process for taking leases.
///
/// # Errors
/// [`Error::Internal`]: the command line left no directory.
pub fn prepare(roots: Vec<Root>) -> Result<Vec<Arc<Root>>, Error> {
    if roots.is_empty() {
        return Err(Error::Internal("no data directory".to_owned()));
    }
    let devices: Vec<Option<u64>> = roots.iter().map(Root::device).collect();
    let numbered = roots.into_iter().zip(volumes(&devices));
    let roots: Vec<Arc<Root>> = numbered.map(|(root, volume)| Arc::new(root.on_volume(volume))).collect();
    lease::ignore_break_signal();
    raise_lease_capability();
    Ok(roots)
}

/// Logs how half-written files are recognized, for a command that publishes.
pub(super) fn log_protections(roots: &[Arc<Root>]) {
    for protection in protections(roots) {
        tracing::info!(event = "protection", "no half-written file is published: {protection}");
    }
}

/// The number of each directory's volume, from 0 on. Directories on one device share a volume; one whose device is not known
/// has its own.
#[must_use]
pub fn volumes(devices: &[Option<u64>]) -> Vec<usize> {
    let mut numbers: Vec<usize> = Vec::with_capacity(devices.len());
    for (at, device) in devices.iter().enumerate() {
        let same = devices[..at].iter().position(|other| device.is_some() && other == device);
        numbers.push(same.map_or_else(|| numbers.iter().max().map_or(0, |last| last + 1), |first| numbers[first]));
    }
    numbers
}

/// A name for each directory's publishers on this host: the same name in each container, another name on each host. The
/// messages of two exchanges have no order between them, so services that share a directory and not an exchange have
/// different names, and do not wait for each other.
///
/// A directory without a name is warned of. The names are sorted, so that two services take their fences in the same order and
/// cannot wait for each other.
pub(super) fn publishers(roots: &[Arc<Root>], exchange: &Exchange) -> Vec<Publisher> {
    let of_another_exchange = match exchange.name.as_str() {
        DEFAULT_EXCHANGE => String::new(),
        name => format!("\0{name}"), // no path holds a NUL
    };
    let publisher = |root: &Arc<Root>| -> io::Result<Publisher> {
        if !root.is_open() {
            return Err(Errno::TIMEDOUT.into());
        }
        let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
        let directory = root.look(b".")?;
        let (device, inode) = (directory.st_dev.to_le_bytes(), directory.st_ino.to_le_bytes());
        let path = root.path().as_os_str().as_encoded_bytes();
        let identity = [&boot, &device[..], &inode, path, of_another_exchange.as_bytes()].concat();
        let name = format!("apollonia-ingestor-{:032x}", xxh3_128(&identity));
        Ok(Publisher { name, directory: root.path().to_owned() })
    };
    let mut publishers = Vec::new();
    for root in roots {
        match publisher(root) {
            Ok(publisher) => publishers.push(publisher),
            Err(cause) => {
                let (path, error) = (root.path(), os_message(&cause));
                tracing::warn!(
                    event = "no_fence",
                    path = &*path.to_string_lossy(),
                    error,
                    "nothing keeps a second service out of {path:?}: it has no name that is the same for both ({error})"
                );
            }
        }
    }
    publishers.sort();
    publishers
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use lapin::ExchangeKind;

    use super::*;
    use crate::files::root::open_roots;

    #[test]
    fn only_publishers_of_one_directory_to_one_exchange_exclude_each_other() {
        let roots = open_roots(&["/sys".into(), "/proc".into()]).unwrap().into_iter().map(Arc::new).collect::<Vec<_>>();
        let names = |exchange: &str, kind| {
            let exchange = Exchange { name: exchange.into(), kind };
            publishers(&roots, &exchange).into_iter().map(|publisher| publisher.name).collect::<Vec<_>>()
        };
        let of_default = names(DEFAULT_EXCHANGE, ExchangeKind::Fanout);
        assert_eq!(of_default, names(DEFAULT_EXCHANGE, ExchangeKind::Topic));
        let all: HashSet<String> = [of_default, names("a", ExchangeKind::Topic), names("b", ExchangeKind::Topic)]
            .concat()
            .into_iter()
            .collect();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn directories_of_one_file_system_share_a_volume() {
        assert_eq!(volumes(&[Some(7), Some(9), Some(7), None, None, Some(9)]), [0, 1, 0, 2, 3, 1]);
    }
}
