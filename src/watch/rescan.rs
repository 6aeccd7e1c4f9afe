//! The rescan of directories: what is listed and compared next, when a rescan of the whole tree begins, and its result.
//!
//! Pure: no I/O, and the time is passed in. [`Rescan::next_step`] gives one small step after another, so that the rest of the
//! watch's loop has its share between them. The whole tree is rescanned at the start, after lost events and on a timer;
//! single directories are when they are new or have no watch.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;

use super::tree::Origin;
use crate::files::directory::{Directory, DirectoryId};
use crate::files::names::Name;

/// The pause between two rescans that events ask for. It doubles up to [`PAUSE_MAX`] while they keep asking.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest such pause, and the quiet time after which the first pause applies again.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Rescan {
    /// A rescan of the whole tree is to begin once the current one has ended.
    needed: bool,
    /// A rescan of the whole tree is under way.
    whole: bool,
    /// Directories to list. `true`: with all directories below them.
    to_list: VecDeque<(DirectoryId, bool)>,
    /// Listed names that have not been compared yet.
    to_compare: VecDeque<Compare>,
    /// Files whose version is not the last confirmed one.
    found: usize,
    /// Those of them that are published only if their content is another.
    in_question: usize,
    /// Files compared that the filter admits.
    compared: usize,
    /// The rescan of the start has not ended yet.
    first: bool,
    /// Known files are published as well: `--catch-up all`.
    everything: bool,
    /// When the last rescan of the whole tree began.
    began: Option<Instant>,
    /// When the needed rescan may begin.
    not_before: Option<Instant>,
    pause: Duration,
}

/// The names of one directory that have not been compared yet.
#[derive(Debug)]
struct Compare {
    id: DirectoryId,
    left: vec::IntoIter<Name>,
    origin: Origin,
}

/// What a rescan does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Compare {
        id: DirectoryId,
        name: Name,
        origin: Origin,
    },
    /// Every listed name of the directory has been compared.
    Compared(DirectoryId),
    List {
        id: DirectoryId,
        /// With all directories below it.
        deep: bool,
    },
}

/// The result of a rescan of the whole tree: see the fields of [`Rescan`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) first: bool,
    pub(crate) found: usize,
    pub(crate) in_question: usize,
    pub(crate) compared: usize,
}

impl Rescan {
    /// No rescan is needed, and the next one is the start's.
    pub(crate) fn new() -> Self {
        Self {
            needed: false,
            whole: false,
            to_list: VecDeque::new(),
            to_compare: VecDeque::new(),
            found: 0,
            in_question: 0,
            compared: 0,
            first: true,
            everything: false,
            began: None,
            not_before: None,
            pause: PAUSE_MIN,
        }
    }

    /// Whether there is anything to list or to compare.
    pub(crate) fn running(&self) -> bool {
        !self.to_list.is_empty() || !self.to_compare.is_empty()
    }

    /// Whether a rescan of the whole tree is to begin.
    pub(crate) fn is_needed(&self) -> bool {
        self.needed
    }

    /// Whether the current rescan publishes known files as well.
    pub(crate) fn publishes_known(&self) -> bool {
        self.everything
    }

    /// Whether a rescan of the whole tree is to begin or under way.
    pub(crate) fn is_whole_outstanding(&self) -> bool {
        self.needed || self.whole
    }

    /// Whether there may be files that nothing has found yet.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.needed || self.whole || self.running()
    }

    /// An event asks for a rescan of the whole tree. It begins after a pause that grows while events keep asking.
    pub(crate) fn ask(&mut self, now: Instant) {
        if self.needed {
            return;
        }
        self.needed = true;
        match self.began {
            Some(began) if now.saturating_duration_since(began) <= PAUSE_MAX => {
                self.not_before = Some(began + self.pause);
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
            _ => {
                self.not_before = Some(now);
                self.pause = PAUSE_MIN;
            }
        }
    }

    /// The timer or a signal asks for a rescan of the whole tree.
    pub(crate) fn ask_now(&mut self, now: Instant) {
        self.needed = true;
        self.not_before = Some(now);
    }

    /// When the needed rescan of the whole tree has to begin. One that is under way ends first.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.needed && !self.whole)
    }

    /// Whether the needed rescan of the whole tree has to begin now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_time().is_some_and(|time| time <= now)
    }

    /// Whether there is a step to take, or a rescan to begin or to end.
    pub(crate) fn has_work(&self, now: Instant) -> bool {
        self.running() || self.whole || self.is_due(now)
    }

    /// A rescan of the whole tree begins.
    pub(crate) fn begin(&mut self, roots: &[Arc<Directory>], now: Instant) {
        debug_assert!(!self.whole, "two rescans of the whole tree are under way");
        (self.needed, self.whole, self.everything) = (false, true, false);
        (self.found, self.in_question, self.compared) = (0, 0, 0);
        self.began = Some(now);
        self.to_list.extend(roots.iter().map(|root| (root.id(), true)));
    }

    /// The current rescan publishes known files as well: `--catch-up all`.
    pub(crate) fn publish_known(&mut self) {
        self.everything = true;
    }

    /// A directory is to be listed. `deep`: with all directories below it.
    pub(crate) fn list_later(&mut self, id: DirectoryId, deep: bool) {
        self.to_list.push_back((id, deep));
    }

    /// A directory was listed, and these names in it are to be compared.
    pub(crate) fn compare_later(&mut self, id: DirectoryId, names: Vec<Name>, origin: Origin) {
        self.to_compare.push_back(Compare { id, left: names.into_iter(), origin });
    }

    /// The next step. Names are compared before further directories are listed, so that few names are held in memory.
    pub(crate) fn next_step(&mut self) -> Option<Step> {
        match self.to_compare.front_mut() {
            Some(Compare { id, left, origin }) => match (left.next(), *id, *origin) {
                (Some(name), id, origin) => Some(Step::Compare { id, name, origin }),
                (None, id, _) => {
                    self.to_compare.pop_front();
                    Some(Step::Compared(id))
                }
            },
            None => self.next_to_list().map(|(id, deep)| Step::List { id, deep }),
        }
    }

    /// The next directory to list, before any name is compared.
    pub(crate) fn next_to_list(&mut self) -> Option<(DirectoryId, bool)> {
        self.to_list.pop_front()
    }

    /// Directories with names that have not been compared yet, and these names.
    pub(crate) fn listed(&self) -> impl Iterator<Item = (DirectoryId, &[Name])> {
        self.to_compare.iter().map(|compare| (compare.id, compare.left.as_slice()))
    }

    /// A file that the filter admits was compared.
    pub(crate) fn count_compared(&mut self) {
        self.compared += 1;
    }

    /// A compared file is to be read. `in_question`: it is published only if its content is another.
    pub(crate) fn count_found(&mut self, in_question: bool) {
        self.found += 1;
        self.in_question += usize::from(in_question);
    }

    /// Ends the rescan of the whole tree, if one is under way and has no step left.
    pub(crate) fn finish(&mut self) -> Option<Finished> {
        if !self.whole || self.running() {
            return None;
        }
        self.whole = false;
        let (found, in_question, compared) = (self.found, self.in_question, self.compared);
        assert!(in_question <= found && found <= compared, "a rescan has found more files than it has compared");
        Some(Finished { first: mem::take(&mut self.first), found, in_question, compared })
    }

    /// Ends the rescan of the start without comparing the names that it has listed, and returns them by directory.
    pub(crate) fn finish_uncompared(&mut self) -> Vec<(DirectoryId, Vec<Name>)> {
        (self.whole, self.first) = (false, false);
        mem::take(&mut self.to_compare).into_iter().map(|compare| (compare.id, compare.left.collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: DirectoryId = DirectoryId::FIRST;

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn begun(now: Instant) -> Rescan {
        let mut rescan = Rescan::new();
        rescan.begin(&[], now);
        rescan
    }

    #[test]
    fn the_pause_grows_while_events_keep_asking_and_starts_again_after_a_quiet_time() {
        let mut now = Instant::now();
        let mut rescan = Rescan::new();
        assert_eq!(rescan.next_time(), None);
        rescan.ask(now);
        assert!(rescan.is_due(now));
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            rescan.begin(&[], now);
            assert!(rescan.finish().is_some());
            rescan.ask(now);
            rescan.ask(now + PAUSE_MAX * 2);
            assert_eq!(rescan.next_time(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
        rescan.begin(&[], now);
        assert!(rescan.finish().is_some());
        now += PAUSE_MAX + Duration::from_nanos(1);
        rescan.ask(now);
        assert!(rescan.is_due(now));
        rescan.begin(&[], now);
        assert!(rescan.finish().is_some());
        rescan.ask(now);
        assert_eq!(rescan.next_time(), Some(now + PAUSE_MIN));
    }

    #[test]
    fn the_timer_does_not_wait_for_a_pause_and_waits_for_the_rescan_under_way() {
        let now = Instant::now();
        let mut rescan = begun(now);
        rescan.ask_now(now);
        assert!(rescan.next_time().is_none() && rescan.is_outstanding());
        assert!(rescan.finish().is_some_and(|finished| finished.first));
        assert_eq!(rescan.next_time(), Some(now));
        rescan.begin(&[], now);
        assert!(rescan.finish().is_some_and(|finished| !finished.first));
        assert!(!rescan.is_outstanding() && !rescan.has_work(now));
    }

    #[test]
    fn a_rescan_says_what_is_left_of_it() {
        let now = Instant::now();
        let said = |rescan: &Rescan| {
            [
                rescan.is_needed(),
                rescan.is_whole_outstanding(),
                rescan.is_outstanding(),
                rescan.running(),
                rescan.has_work(now),
            ]
        };
        let mut rescan = Rescan::new();
        assert_eq!(said(&rescan), [false; 5]);
        rescan.list_later(HERE, false);
        assert_eq!(said(&rescan), [false, false, true, true, true], "one directory is to be listed");
        rescan.next_step();
        rescan.compare_later(HERE, vec![], Origin::Found);
        assert_eq!(said(&rescan), [false, false, true, true, true], "its names are to be compared");
        rescan.next_step();
        rescan.ask_now(now + PAUSE_MIN);
        assert_eq!(said(&rescan), [true, true, true, false, false], "the whole tree, and later");
        rescan.ask_now(now);
        assert_eq!(said(&rescan), [true, true, true, false, true], "now");
        rescan.begin(&[], now);
        assert_eq!(said(&rescan), [false, true, true, false, true], "it is under way");
        rescan.finish();
        assert_eq!(said(&rescan), [false; 5]);
    }

    #[test]
    fn each_rescan_of_the_whole_tree_is_told_whether_it_publishes_known_files() {
        let mut rescan = begun(Instant::now());
        assert!(!rescan.publishes_known());
        rescan.publish_known();
        assert!(rescan.publishes_known());
        rescan.finish();
        rescan.begin(&[], Instant::now());
        assert!(!rescan.publishes_known());
    }

    #[test]
    fn names_are_compared_before_the_next_directory_is_listed() {
        let mut rescan = begun(Instant::now());
        rescan.list_later(HERE, true);
        assert_eq!(rescan.next_step(), Some(Step::List { id: HERE, deep: true }));
        rescan.list_later(HERE.next(), false);
        rescan.compare_later(HERE, vec![name("a"), name("b")], Origin::MovedTo);
        assert_eq!(rescan.listed().map(|(id, names)| (id, names.len())).collect::<Vec<_>>(), [(HERE, 2)]);
        for text in ["a", "b"] {
            let step = Step::Compare { id: HERE, name: name(text), origin: Origin::MovedTo };
            assert_eq!(rescan.next_step(), Some(step));
            rescan.count_compared();
            rescan.count_found(text == "b");
        }
        assert_eq!((rescan.next_step(), rescan.finish()), (Some(Step::Compared(HERE)), None));
        assert_eq!(rescan.next_step(), Some(Step::List { id: HERE.next(), deep: false }));
        assert_eq!(rescan.next_step(), None);
        let finished = Finished { first: true, found: 2, in_question: 1, compared: 2 };
        assert_eq!((rescan.finish(), rescan.finish()), (Some(finished), None));
    }

    #[test]
    fn the_rescan_of_the_start_can_end_without_comparing() {
        let mut rescan = begun(Instant::now());
        rescan.publish_known();
        rescan.compare_later(HERE, vec![name("a")], Origin::Found);
        assert_eq!(rescan.finish_uncompared(), [(HERE, vec![name("a")])]);
        assert!(!rescan.is_outstanding() && !rescan.first);
    }
}
