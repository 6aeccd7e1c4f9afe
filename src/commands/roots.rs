//! What `watch` and `scan` do with the data directories before their first file.

use std::sync::Arc;

use crate::error::{Error, named};
use crate::files::lease;
use crate::files::root::{Protection, Root, raise_lease_capability};

/// How half-written files are recognized, in words: one sentence if it holds for all directories, else one for each way.
pub(super) fn protections(roots: &[Arc<Root>]) -> Vec<String> {
    let mut kinds: Vec<Protection> = Vec::new();
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
    for protection in protections(&roots) {
        tracing::info!(event = "protection", "no half-written file is published: {protection}");
    }
    Ok(roots)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_one_file_system_share_a_volume() {
        assert_eq!(volumes(&[Some(7), Some(9), Some(7), None, None, Some(9)]), [0, 1, 0, 2, 3, 1]);
    }
}
