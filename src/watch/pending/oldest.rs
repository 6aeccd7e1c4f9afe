//! What the paths of the set wait for, and which wait longest, for who asks.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Instant;

use super::Pending;
use crate::files::directory::DirectoryId;
use crate::files::names::Name;
use crate::inquiry::Held;

impl Pending {
    /// What a path waits for, and since when; `None` when it is not in the set.
    pub(crate) fn held(&self, id: DirectoryId, name: &[u8], now: Instant) -> Option<(Instant, Held)> {
        self.entries.get(&id)?.get(name).map(|entry| (entry.since, entry.held(now)))
    }

    /// The oldest entries, oldest first, at most so many. The search visits every entry, so it is for questions.
    pub(crate) fn oldest_entries(&self, most: usize, now: Instant) -> Vec<(Instant, DirectoryId, Name, Held)> {
        let mut oldest: BinaryHeap<(Instant, DirectoryId, &Name)> = BinaryHeap::with_capacity(most + 1);
        for (id, names) in &self.entries {
            for (name, entry) in names {
                oldest.push((entry.since, *id, name));
                if oldest.len() > most {
                    oldest.pop();
                }
            }
        }
        let held = |id, name: &Name| self.held(id, name, now).map_or(Held::InFlight, |(_, held)| held);
        let sorted = oldest.into_sorted_vec().into_iter();
        sorted.map(|(since, id, name)| (since, id, Arc::clone(name), held(id, name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::files::version::Timestamp;
    use crate::watch::pending::{Change, Due};

    #[test]
    fn the_oldest_are_listed_first_each_with_what_it_waits_for() {
        let (settle, quiet) = (Duration::from_secs(9), Duration::from_secs(3));
        let (mut pending, start) = (Pending::new(settle, quiet, 99), Instant::now());
        let (id, stamp) = (DirectoryId::FIRST, Timestamp { seconds: 0, nanoseconds: 0 });
        let name = |number: u64| Name::from(number.to_string().into_bytes());
        let later = |seconds| start + Duration::from_secs(seconds);
        for number in (0..20).rev() {
            let change = if number == 1 { Change::Created { version: 7 } } else { Change::Closed };
            pending.event(id, &name(number), change, false, stamp, later(number)).unwrap();
        }
        let held = |pending: &Pending, now| pending.held(id, &name(0), now).unwrap().1;
        assert_eq!((held(&pending, later(2)), held(&pending, later(3))), (Held::Quiet, Held::Room));
        assert!(matches!(pending.next_due(later(3), |_| true), Some(Due::Ready { .. })));
        assert_eq!(held(&pending, later(3)), Held::InFlight);
        let listed: Vec<_> =
            pending.oldest_entries(3, later(5)).into_iter().map(|(_, _, name, held)| (name, held)).collect();
        assert_eq!(listed, [(name(0), Held::InFlight), (name(1), Held::Settling), (name(2), Held::Room)]);
        pending.busy(id, &name(0), Held::Writer, later(5));
        assert_eq!(held(&pending, later(5)), Held::Writer);
    }
}
