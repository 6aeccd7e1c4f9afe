//! Each rule of the retries by itself, and the consistency of counts and schedule under any sequence of steps.

use std::iter;

use proptest::prelude::*;

use super::*;

const HERE: DirectoryId = DirectoryId::FIRST;
const FILE: Retry = Retry::Name { directory: false, origin: Origin::Found };

fn name(text: &str) -> Name {
    text.as_bytes().into()
}

fn refuse(retries: &mut Retries, id: DirectoryId, name: &Name, what: Retry, now: Instant) -> Recorded {
    retries.refuse(id, name, what, &io::Error::from_raw_os_error(libc::EACCES), now)
}

fn due(retries: &mut Retries, now: Instant) -> Option<(DirectoryId, Name, Retry)> {
    retries.next_due(now, |_, _| false)
}

#[test]
fn a_refused_name_is_tried_with_growing_pauses_until_it_succeeds() {
    let (mut retries, mut now) = (Retries::new(10), Instant::now());
    assert_eq!(refuse(&mut retries, HERE, &name("a"), FILE, now), Recorded::New);
    let mut pause = PAUSE_MIN;
    for _ in 0..20 {
        assert_eq!(due(&mut retries, now), None);
        now += pause;
        assert_eq!(due(&mut retries, now), Some((HERE, name("a"), FILE)));
        assert_eq!(refuse(&mut retries, HERE, &name("a"), FILE, now), Recorded::Again);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    retries.forget(HERE, &name("a"), now);
    assert_eq!((retries.refused(), retries.next_time()), (0, None));
}

#[test]
fn an_entry_that_is_not_refused_again_is_removed() {
    let (mut retries, now) = (Retries::new(10), Instant::now());
    refuse(&mut retries, HERE, &name("a"), FILE, now);
    assert!(due(&mut retries, now + PAUSE_MIN).is_some());
    assert_eq!(retries.next_due(now + 4 * PAUSE_MIN, |_, _| true), None);
    assert_eq!(retries.refused(), 1, "its try is still under way");
    assert_eq!(due(&mut retries, now + 12 * PAUSE_MIN), None);
    assert_eq!(retries.refused(), 0);
}

#[test]
fn a_change_of_rights_causes_a_try_at_once_and_short_pauses_again() {
    let (mut retries, mut now) = (Retries::new(10), Instant::now());
    refuse(&mut retries, HERE, &name("a"), FILE, now);
    refuse(&mut retries, HERE, &name("b"), FILE, now);
    for _ in 0..10 {
        now = retries.next_time().unwrap();
        let (id, name, what) = due(&mut retries, now).unwrap();
        refuse(&mut retries, id, &name, what, now);
    }
    assert!(retries.hurry(HERE, &name("a"), now) && !retries.hurry(HERE, &name("c"), now));
    assert_eq!(due(&mut retries, now), Some((HERE, name("a"), FILE)));
    refuse(&mut retries, HERE, &name("a"), FILE, now);
    assert_eq!(retries.next_time(), Some(now + PAUSE_MIN));
    retries.hurry_all(HERE, now);
    assert_eq!([due(&mut retries, now), due(&mut retries, now)].iter().flatten().count(), 2);
}

#[test]
fn a_name_that_was_refused_while_its_job_was_in_flight_is_tried_once_more() {
    let (mut retries, now) = (Retries::new(10), Instant::now());
    refuse(&mut retries, HERE, &name("a"), FILE, now);
    assert!(due(&mut retries, now + PAUSE_MIN).is_some());
    refuse(&mut retries, HERE, &name("a"), FILE, now + PAUSE_MIN);
    retries.completed(HERE, &name("a"), now + PAUSE_MIN);
    assert_eq!(due(&mut retries, now + PAUSE_MIN), Some((HERE, name("a"), FILE)));
    retries.completed(HERE, &name("a"), now + PAUSE_MIN);
    assert_eq!((retries.refused(), retries.next_time()), (0, None));
}

#[test]
fn beyond_the_bound_a_directory_is_entered_in_place_of_its_names() {
    let (mut retries, now) = (Retries::new(2), Instant::now());
    for text in ["a", "b", "c", "d"] {
        refuse(&mut retries, HERE, &name(text), FILE, now);
    }
    let due: Vec<_> =
        iter::from_fn(|| due(&mut retries, now + PAUSE_MIN)).map(|(_, name, what)| (name, what)).collect();
    let directory = Retry::Listing { shut: false };
    assert_eq!(due, [(name("a"), FILE), (name("b"), FILE), (name(""), directory)]);
    assert_eq!((retries.refused(), retries.directories()), (3, 0));
    refuse(&mut retries, HERE, &name(""), Retry::Listing { shut: true }, now);
    assert!(retries.is_shut(HERE) && retries.directories() == 1);
    retries.remove_directory(HERE);
    assert_eq!((retries.refused(), retries.directories(), retries.next_time()), (0, 0, None));
}

#[test]
fn a_file_published_early_is_checked_less_and_less_often_until_its_time_is_over() {
    let (mut retries, now) = (Retries::new(10), Instant::now());
    let recheck = Retry::Recheck { version: 7 };
    retries.recheck(HERE, &name("a"), 7, Duration::from_secs(1), now);
    assert_eq!(retries.refused(), 0);
    let mut checks = Vec::new();
    while let Some(time) = retries.next_time() {
        assert_eq!(due(&mut retries, time), Some((HERE, name("a"), recheck)));
        checks.push(time.duration_since(now).as_secs());
    }
    assert_eq!(checks[..10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert!(checks.len() < 50 && (600..700).contains(checks.last().unwrap()), "{checks:?}");
}

#[test]
fn a_refused_file_that_is_to_be_checked_stays_refused_and_is_checked_once_it_was_read() {
    let recheck = Retry::Recheck { version: 7 };
    let check = |retries: &mut Retries, now| retries.recheck(HERE, &name("a"), 7, Duration::from_secs(1), now);
    let refused = |closed: bool| {
        let (mut retries, now) = (Retries::new(10), Instant::now());
        assert_eq!(refuse(&mut retries, HERE, &name("a"), FILE, now), Recorded::New);
        // Each try looks at the file, and then cannot read it.
        for seconds in [1, 10, 100] {
            let now = now + Duration::from_secs(seconds);
            assert_eq!(due(&mut retries, now), Some((HERE, name("a"), FILE)));
            check(&mut retries, now);
            assert_eq!(retries.refused(), 1);
            assert_eq!(refuse(&mut retries, HERE, &name("a"), FILE, now), Recorded::Again, "after {seconds} s");
        }
        if closed {
            retries.closed(HERE, &name("a"));
        }
        let now = now + Duration::from_secs(1000);
        assert!(due(&mut retries, now).is_some());
        (retries, now)
    };
    let after = Duration::from_secs(1);
    let (mut retries, now) = refused(false);
    retries.completed(HERE, &name("a"), now);
    assert_eq!((retries.refused(), retries.next_time()), (0, Some(now + after)));
    assert_eq!(due(&mut retries, now + after), Some((HERE, name("a"), recheck)));
    // Without a report of its success, at the time of the next try.
    let (mut retries, _) = refused(false);
    let next = retries.next_time().unwrap();
    assert_eq!(due(&mut retries, next), None);
    assert_eq!((retries.refused(), retries.next_time()), (0, Some(next + after)));
    let (mut retries, now) = refused(true);
    retries.completed(HERE, &name("a"), now);
    assert_eq!(retries.next_time(), None, "its writer raises events");
}

proptest! {
    /// After any step the counts and the schedule agree with the entries.
    #[test]
    fn counts_and_schedule_agree_with_the_entries(steps in prop::collection::vec((0..9u8, 0..4u8, 0..4u64), 0..60)) {
        let (mut retries, mut now) = (Retries::new(3), Instant::now());
        for (step, which, seconds) in steps {
            let (id, name) = (if which % 2 == 0 { HERE } else { HERE.next() }, name(&format!("{which}")));
            let directory = Retry::Name { directory: true, origin: Origin::MovedTo };
            match step {
                0 => drop(refuse(&mut retries, id, &name, FILE, now)),
                1 => drop(refuse(&mut retries, id, &name, directory, now)),
                2 => drop(refuse(&mut retries, id, &name, Retry::Listing { shut: true }, now)),
                3 => retries.recheck(id, &name, 1, Duration::from_secs(1), now),
                4 if seconds == 0 => retries.gone(id, &name),
                4 if seconds == 1 => retries.closed(id, &name),
                4 if seconds == 2 => retries.completed(id, &name, now),
                4 => retries.forget(id, &name, now),
                5 => drop(retries.hurry(id, &name, now)),
                6 => retries.remove_directory(id),
                7 => drop(due(&mut retries, now)),
                _ => now += Duration::from_secs(seconds * seconds * 60),
            }
            let all: Vec<(Name, Retry, DueTime)> = retries.entries.values()
                .flat_map(|names| names.iter().map(|(name, entry)| (Arc::clone(name), entry.what, entry.due)))
                .collect();
            prop_assert!(!retries.entries.values().any(Map::is_empty));
            prop_assert_eq!(retries.names, all.iter().filter(|(name, ..)| !name.is_empty()).count());
            prop_assert!(retries.names <= 3);
            prop_assert_eq!(retries.refused, all.iter().filter(|(_, what, _)| what.is_refused()).count());
            prop_assert_eq!(retries.directories, all.iter().filter(|(_, what, _)| what.is_directory()).count());
            prop_assert_eq!(retries.schedule.len(), all.len());
            for (due, id, name) in retries.schedule.iter() {
                prop_assert_eq!(retries.get(id, name).map(|entry| entry.due), Some(due));
            }
        }
    }
}
