//! The names present in one directory, and the neighbors of each.
//!
//! A listing builds the index and events keep it true. Neighbors are found by a few look-ups in ordered sets, whether there
//! are ten names or a million.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter;
use std::ops::Bound;
use std::sync::Arc;

use arrayvec::ArrayVec;

/// A file's name in its directory: any bytes but `/` and NUL.
pub type Name = Arc<[u8]>;

/// A hash map for the keys that each event is looked up by: names, and the ids of directories and watches.
///
/// Its hasher is several times as fast as the standard one on names. Others choose the names, so the seed is random for
/// each process and each map, and nobody can prepare names that collide. Somebody who can time single look-ups could
/// find out the seed; nobody here can.
pub type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A hash set with the hasher of [`Map`].
pub type Set<K> = HashSet<K, foldhash::fast::RandomState>;

/// The most neighbors of a file.
pub const NEIGHBORS_MAX: usize = 10;

/// The neighbors of a file.
pub type Neighbors<'a> = ArrayVec<&'a Name, NEIGHBORS_MAX>;

/// The stems of files that describe their whole directory, in lower case. Case does not count.
const COMPANION_STEMS: [&[u8]; 4] = [b"tracklist", b"tracks", b"info", b"readme"];

/// The first characters of a stem that files of one family share.
const FAMILY_CHARACTERS: usize = 3;

/// The name up to its last dot. A leading dot does not count.
#[must_use]
pub fn stem(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|&byte| byte == b'.') {
        None | Some(0) => name,
        Some(dot) => &name[..dot],
    }
}

/// The bytes of the first three characters, if there are three. What is not UTF-8 counts as one character for each U+FFFD
/// that would replace it.
fn family(stem: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    let mut characters = 0;
    for chunk in stem.utf8_chunks() {
        for character in chunk.valid().chars() {
            end += character.len_utf8();
            characters += 1;
            if characters == FAMILY_CHARACTERS {
                return Some(&stem[..end]);
            }
        }
        if !chunk.invalid().is_empty() {
            end += chunk.invalid().len();
            characters += 1;
            if characters == FAMILY_CHARACTERS {
                return Some(&stem[..end]);
            }
        }
    }
    None
}

fn is_companion(stem: &[u8]) -> bool {
    COMPANION_STEMS.iter().any(|companion| stem.eq_ignore_ascii_case(companion))
}

/// The dots of a name. A leading one does not count, as in [`stem`].
fn dots(name: &[u8]) -> usize {
    name.iter().skip(1).filter(|&&byte| byte == b'.').count()
}

/// The regular files present in one directory.
///
/// Each name is kept once, in a set of the names with as many dots. The files of a stem have one dot more than it has, and
/// begin with it and a dot. In the set of that number these lie side by side; in a set of all names others could lie
/// between, as many as there are (`a.x.1`, `a.x.2`, ... between `a.w` and `a.y`). A directory has one to three such sets,
/// and no name has more than 254 dots.
#[derive(Debug, Default)]
pub struct Names {
    by_dots: Vec<BTreeSet<Name>>,
    companions: BTreeSet<Name>,
}

impl<'a> FromIterator<&'a Name> for Names {
    /// Builds each set from a sorted list, which is several times as fast as inserting one by one.
    fn from_iter<T: IntoIterator<Item = &'a Name>>(names: T) -> Self {
        Self::of_sorted(sorted(names))
    }
}

/// Sorts names by their bytes.
pub(super) fn sorted<'a>(names: impl IntoIterator<Item = &'a Name>) -> Vec<&'a Name> {
    let names: Vec<_> = names.into_iter().collect();
    let shared = shared_length(&names);
    let mut sorted: Vec<_> = names.into_iter().map(|name| (head(&name[shared..]), name)).collect();
    sorted.sort_unstable();
    sorted.into_iter().map(|(_, name)| name).collect()
}

/// The number of bytes with which all names begin.
fn shared_length(names: &[&Name]) -> usize {
    let Some((first, others)) = names.split_first() else { return 0 };
    let shared_with_first = |length: usize, name: &&Name| {
        first[..length].iter().zip(name.iter()).take_while(|(one, other)| one == other).count()
    };
    others.iter().fold(first.len(), shared_with_first)
}

/// The first bytes as a number, which sorts as they do. Sorting by it first spares most comparisons of the names
/// themselves, each of which waits for memory among a million.
fn head(bytes: &[u8]) -> u128 {
    let mut head = [0; size_of::<u128>()];
    let length = bytes.len().min(head.len());
    head[..length].copy_from_slice(&bytes[..length]);
    u128::from_be_bytes(head)
}

impl Names {
    /// Builds the index of names that are [`sorted`].
    pub(super) fn of_sorted(names: Vec<&Name>) -> Self {
        debug_assert!(names.is_sorted());
        let companions = names.iter().filter(|name| is_companion(stem(name)));
        let companions = companions.map(|&name| Arc::clone(name)).collect();
        let mut by_dots = Vec::<Vec<Name>>::new();
        for name in names {
            let dots = dots(name);
            if by_dots.len() <= dots {
                by_dots.resize_with(dots + 1, Vec::new);
            }
            by_dots[dots].push(Arc::clone(name));
        }
        Self { by_dots: by_dots.into_iter().map(BTreeSet::from_iter).collect(), companions }
    }

    /// Adds a name, unless it is there.
    pub fn insert(&mut self, name: &Name) {
        let dots = dots(name);
        if self.by_dots.len() <= dots {
            self.by_dots.resize_with(dots + 1, BTreeSet::new);
        }
        if self.by_dots[dots].insert(Arc::clone(name)) && is_companion(stem(name)) {
            self.companions.insert(Arc::clone(name));
        }
    }

    /// Removes a name, if it is there.
    pub fn remove(&mut self, name: &[u8]) {
        if self.by_dots.get_mut(dots(name)).is_some_and(|names| names.remove(name)) {
            self.companions.remove(name);
        }
    }

    /// Compares the index with names that are [`sorted`]. Returns those that it lacks, and those that it holds beyond them.
    pub(super) fn differences<'a>(&self, sorted: &[&'a Name]) -> (Vec<&'a Name>, Vec<Name>) {
        debug_assert!(sorted.is_sorted());
        let (mut missing, mut surplus) = (Vec::new(), Vec::new());
        let mut own: Vec<_> = self.by_dots.iter().map(|names| names.iter().peekable()).collect();
        for &name in sorted {
            let Some(own) = own.get_mut(dots(name)) else {
                missing.push(name);
                continue;
            };
            surplus.extend(iter::from_fn(|| own.next_if(|own| *own < name)).cloned());
            if own.next_if_eq(&name).is_none() {
                missing.push(name);
            }
        }
        surplus.extend(own.into_iter().flatten().cloned());
        (missing, surplus)
    }

    /// The name, if it is there.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Name> {
        self.by_dots.get(dots(name))?.get(name)
    }

    /// Whether a name is there.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// The number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_dots.iter().map(BTreeSet::len).sum()
    }

    /// Whether the index holds no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_dots.iter().all(BTreeSet::is_empty)
    }

    /// The neighbors of a name, at most [`NEIGHBORS_MAX`]: its stem's other files, then the directory's
    /// companions, then its family; each group in the order of its names' bytes.
    #[must_use]
    pub fn neighbors(&self, name: &Name) -> Neighbors<'_> {
        let mut found = Neighbors::new();
        let own = stem(name);
        let with_dot = name.get(..=own.len()).map_or_else(|| Cow::Owned([own, b"."].concat()), Cow::Borrowed);
        let number = dots(own);
        // A name without a dot is its own stem, and sorts before all that continue it.
        let bare = if number == 0 { self.get(own) } else { None };
        let longer = self.by_dots.get(number + 1).into_iter().flat_map(|names| beginning(names, &with_dot));
        take(&mut found, name, bare.into_iter().chain(longer));
        take(&mut found, name, self.companions.iter());
        if let Some(family) = family(own) {
            take(&mut found, name, self.beginning(family));
        }
        found
    }

    /// The names that begin with these bytes, in the order of their bytes.
    fn beginning(&self, head: &[u8]) -> impl Iterator<Item = &Name> {
        let mut sets: Vec<_> = self.by_dots.iter().map(|names| beginning(names, head).peekable()).collect();
        iter::from_fn(move || {
            let first = sets.iter_mut().enumerate().filter_map(|(number, names)| Some((*names.peek()?, number)));
            let (_, number) = first.min()?;
            sets[number].next()
        })
    }
}

/// The names of a set that begin with these bytes.
fn beginning<'a>(names: &'a BTreeSet<Name>, head: &[u8]) -> impl Iterator<Item = &'a Name> {
    names.range::<[u8], _>((Bound::Included(head), Bound::Unbounded)).take_while(move |name| name.starts_with(head))
}

/// Adds a group's candidates, no two of them alike, that are neither the file itself nor in `found` yet, while there is room. The
/// work is bounded, because at most eleven candidates are passed over.
fn take<'a>(found: &mut Neighbors<'a>, name: &Name, candidates: impl Iterator<Item = &'a Name>) {
    let before = found.len();
    for candidate in candidates {
        if found.is_full() {
            return;
        }
        if candidate != name && !found[..before].contains(&candidate) {
            found.push(candidate);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::directory::Directory;
    use crate::files::directory::tests::root_at;

    /// The contract's section 5, word for word, on a plain list.
    fn naive(names: &[Name], name: &Name) -> Vec<Name> {
        let mut sorted: Vec<&Name> = names.iter().filter(|other| *other != name).collect();
        sorted.sort();
        sorted.dedup();
        let decode = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let characters: Vec<char> = decode(stem(name)).chars().take(3).collect();
        type Rule<'a> = Box<dyn Fn(&Name) -> bool + 'a>;
        let groups: [Rule; 3] = [
            Box::new(|other: &Name| stem(other) == stem(name)),
            Box::new(|other: &Name| {
                ["tracklist", "tracks", "info", "readme"].contains(&decode(stem(other)).to_ascii_lowercase().as_str())
            }),
            Box::new(|other: &Name| {
                family(stem(name))
                    .is_some_and(|_| characters.len() == 3 && other.starts_with(family(stem(name)).unwrap()))
            }),
        ];
        let mut found: Vec<Name> = Vec::new();
        for group in &groups {
            for other in &sorted {
                if group(other) && !found.contains(other) {
                    found.push(Arc::clone(other));
                }
            }
        }
        found.truncate(NEIGHBORS_MAX);
        found
    }

    fn name() -> impl Strategy<Value = Name> {
        let stems = prop_oneof![
            4 => prop::sample::select(vec!["a", "ab", "abc", "abcd", "abd", "é", "éàü", "éàüx", ".abc", "abc.tar", "a.b.c"])
                .prop_map(|stem| stem.as_bytes().to_vec()),
            1 => prop::sample::select(vec!["README", "Tracks", "info", "TrackList", "readme"]).prop_map(|stem| stem.as_bytes().to_vec()),
            1 => prop::collection::vec(prop::sample::select(vec![b'a', b'.', 0xc3, 0xa9, 0xff]), 1..6),
        ];
        let extensions =
            prop::sample::select(vec!["", ".", ".x", ".y", ".z", ".1", ".2", ".3", ".4", ".5", ".6", ".7", ".8"]);
        (stems, extensions).prop_map(|(stem, extension)| [&stem, extension.as_bytes()].concat().into())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
        #[test]
        fn the_index_finds_what_a_listing_would(
            present in prop::collection::vec(name(), 0..60),
            listed: prop::sample::Index,
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            asked in prop::collection::vec(name(), 1..8),
        ) {
            let (at_once, one_by_one) = present.split_at(listed.index(present.len() + 1));
            let mut names: Names = at_once.iter().collect();
            let mut list: Vec<Name> = Vec::new();
            for name in &present {
                if !at_once.contains(name) || one_by_one.contains(name) {
                    names.insert(name);
                }
                if !list.contains(name) { list.push(Arc::clone(name)) }
            }
            for index in removed {
                if list.is_empty() { break }
                let name = list.swap_remove(index.index(list.len()));
                names.remove(&name);
            }
            prop_assert_eq!(names.len(), list.len());
            for name in asked.iter().chain(&list) {
                prop_assert!(names.neighbors(name).into_iter().eq(&naive(&list, name)), "of {:?}", String::from_utf8_lossy(name));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
        /// A listing may change few names or many.
        #[test]
        fn after_a_listing_the_index_holds_the_listed_names_and_no_others(
            before in prop::collection::btree_set(name(), 0..60),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            added in prop::collection::vec(name(), 0..4),
        ) {
            let directory = Directory::new(&root_at("/"), b"");
            directory.set_names(&before);
            let mut listed: Vec<&Name> = before.iter().chain(&added).collect();
            for index in removed {
                if !listed.is_empty() { listed.swap_remove(index.index(listed.len())); }
            }
            prop_assert!(sorted(listed.iter().copied()).is_sorted());
            directory.set_names(listed.iter().copied());

            let mut expected = Names::default();
            listed.iter().for_each(|name| expected.insert(name));
            directory.update(|names| {
                // A set that has become empty stays.
                let filled = |names: &Names| names.by_dots.iter().filter(|set| !set.is_empty()).cloned().collect::<Vec<_>>();
                prop_assert_eq!(filled(names), filled(&expected));
                prop_assert_eq!(&names.companions, &expected.companions);
                Ok(())
            })?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
        /// The rules of stem and family in other words, for names of arbitrary bytes.
        #[test]
        fn any_name_has_one_stem_and_at_most_one_family(
            name in prop::collection::vec(
                prop_oneof![1 => Just(b'.'), 2 => 0x80..=0xffu8, 2 => prop::sample::select(b"ab \xc3\xa9\xe2\x82\xac".to_vec())],
                1..12,
            ),
        ) {
            let stem = stem(&name);
            prop_assert!(!stem.is_empty() && name.starts_with(stem));
            match &name[stem.len()..] {
                [] => prop_assert!(!name[1..].contains(&b'.')),
                [dot, extension @ ..] => prop_assert!(*dot == b'.' && !extension.contains(&b'.')),
            }
            let decode = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let text = decode(stem);
            match family(stem) {
                None => prop_assert!(text.chars().count() < 3, "{text:?}"),
                Some(first) => {
                    prop_assert!(stem.starts_with(first));
                    prop_assert_eq!(decode(first).chars().count(), 3);
                    // It is cut between two characters, not inside one.
                    prop_assert_eq!(decode(first) + &decode(&stem[first.len()..]), text);
                }
            }
        }
    }

    #[test]
    fn names_are_sorted_by_the_first_bytes_that_not_all_share() {
        let names = ["track 01.flac", "track 02.flac", "track"].map(|name| Name::from(name.as_bytes()));
        let names: Vec<&Name> = names.iter().collect();
        for (count, shared) in [(0, 0), (1, 13), (2, 7), (3, 5)] {
            assert_eq!(shared_length(&names[..count]), shared, "of {count}");
        }
        assert!(head(b"1") < head(b"1\x01") && head(b"1\xff") < head(b"2"));
        assert_eq!(head(b"0123456789abcdef0"), head(b"0123456789abcdef1"), "the names decide beyond 16 bytes");
    }

    #[test]
    fn a_listing_differs_in_the_names_that_only_one_of_the_two_has() {
        let names = |names: &[&str]| names.iter().map(|name| Name::from(name.as_bytes())).collect::<Vec<_>>();
        let held: Names = names(&["a", "b", "b.x", "d", "d.x.y"]).iter().collect();
        let listed = names(&["a", "b.x", "b.z", "c", "d", "e.x.y.z"]);
        let (missing, surplus) = held.differences(&sorted(&listed));
        assert_eq!(missing.into_iter().cloned().collect::<Vec<_>>(), names(&["b.z", "c", "e.x.y.z"]));
        assert_eq!(surplus, names(&["b", "d.x.y"]));
        assert!(held.contains(b"d") && !held.contains(b"c") && !held.contains(b"d.x.y.z"));
        assert!(!held.is_empty() && Names::default().is_empty());
    }

    #[test]
    fn a_stem_ends_at_the_last_dot_that_does_not_lead() {
        for (name, expected) in [(".bashrc", ".bashrc"), ("a.tar.gz", "a.tar"), ("a", "a"), ("a.", "a"), ("..x", ".")] {
            assert_eq!(stem(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }
}
