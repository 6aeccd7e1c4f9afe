//! A map by name for what is kept of each file of a directory, of which there can be a million.

use std::hash::BuildHasher;
use std::{mem, vec};

use hashbrown::HashTable;

use super::names::Name;

/// Places that are kept although most of them are free.
const FREE_PLACES: usize = 1024;

/// A map by name, in less memory than a hash map that holds its entries itself.
///
/// Such a map has room for up to 2.3 times as many entries as it holds, because the number of its places is a power of two
/// of which an eighth stays empty. Here the entries lie side by side, and it is their numbers that are hashed: 5 bytes a
/// place instead of an entry's size. With entries of 48 bytes a million take 60 MB instead of 103.
#[derive(Debug, Clone)]
pub struct NameMap<V> {
    entries: Vec<(Name, V)>,
    /// The positions of the entries, by the hash of the name.
    positions: HashTable<u32>,
    /// As that of [`Map`](super::names::Map).
    hasher: foldhash::fast::RandomState,
}

impl<V> Default for NameMap<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), positions: HashTable::new(), hasher: foldhash::fast::RandomState::default() }
    }
}

impl<V> NameMap<V> {
    /// The number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether something is kept for a name.
    #[must_use]
    pub fn contains_key(&self, name: &[u8]) -> bool {
        self.find(name).is_some()
    }

    /// What is kept for a name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&V> {
        self.find(name).map(|position| &self.entries[position].1)
    }

    /// What is kept for a name, to be changed.
    #[must_use]
    pub fn get_mut(&mut self, name: &[u8]) -> Option<&mut V> {
        self.find(name).map(|position| &mut self.entries[position].1)
    }

    /// Keeps a value for a name, and returns the one that it takes the place of.
    ///
    /// # Panics
    /// With 2³² names, for which there is no memory.
    pub fn insert(&mut self, name: Name, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&*name);
        if let Some(position) = self.position(hash, &name) {
            return Some(mem::replace(&mut self.entries[position].1, value));
        }
        let position = u32::try_from(self.entries.len()).expect("names that fit into memory");
        self.entries.push((name, value));
        self.positions.insert_unique(hash, position, rehash(&self.entries, &self.hasher));
        None
    }

    /// What is kept for a name; `new`, where that is nothing.
    pub fn get_or_insert_with(&mut self, name: &Name, new: impl FnOnce() -> V) -> &mut V {
        let position = self.find(name).unwrap_or_else(|| {
            self.insert(Name::clone(name), new());
            self.entries.len() - 1
        });
        &mut self.entries[position].1
    }

    /// Removes a name. Returns what was kept for it. Where three of four places are free, half of them are given back.
    pub fn remove(&mut self, name: &[u8]) -> Option<V> {
        let hash = self.hasher.hash_one(name);
        let found = self.positions.find_entry(hash, |&position| *self.entries[position as usize].0 == *name);
        let (position, _) = found.ok()?.remove();
        // The last entry takes the place.
        let last = self.entries.len() - 1;
        if position as usize != last {
            let hash = self.hasher.hash_one(&*self.entries[last].0);
            let moved = self.positions.find_mut(hash, |&position| position as usize == last);
            *moved.expect("each entry's position is in the table") = position;
        }
        let (_, value) = self.entries.swap_remove(position as usize);
        if self.entries.capacity() > FREE_PLACES.max(4 * last) {
            self.shrink_to(2 * last);
        }
        Some(value)
    }

    /// Removes all names.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.positions.clear();
    }

    /// Makes room for so many names more.
    pub fn reserve(&mut self, names: usize) {
        self.entries.reserve_exact(names);
        self.positions.reserve(names, rehash(&self.entries, &self.hasher));
    }

    /// Returns all memory but that of the names.
    pub fn shrink_to_fit(&mut self) {
        self.shrink_to(0);
    }

    fn shrink_to(&mut self, places: usize) {
        self.entries.shrink_to(places);
        self.positions.shrink_to(places, rehash(&self.entries, &self.hasher));
    }

    /// The names and what is kept for each, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.entries.iter().map(|(name, value)| (name, value))
    }

    /// The names, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &Name> {
        self.entries.iter().map(|(name, _)| name)
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.position(self.hasher.hash_one(name), name)
    }

    /// The position of the entry of a name with this hash.
    fn position(&self, hash: u64, name: &[u8]) -> Option<usize> {
        let found = self.positions.find(hash, |&position| *self.entries[position as usize].0 == *name);
        found.map(|&position| position as usize)
    }
}

impl<V> IntoIterator for NameMap<V> {
    type Item = (Name, V);
    type IntoIter = vec::IntoIter<(Name, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<V> Extend<(Name, V)> for NameMap<V> {
    fn extend<T: IntoIterator<Item = (Name, V)>>(&mut self, entries: T) {
        entries.into_iter().for_each(|(name, value)| drop(self.insert(name, value)));
    }
}

impl<V> FromIterator<(Name, V)> for NameMap<V> {
    fn from_iter<T: IntoIterator<Item = (Name, V)>>(entries: T) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

/// The hash of the entry at a position, for a table that grows or shrinks.
fn rehash<V>(entries: &[(Name, V)], hasher: &impl BuildHasher) -> impl Fn(&u32) -> u64 {
    |&position| hasher.hash_one(&*entries[position as usize].0)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u16),
        GetOrInsert(u8, u16),
        Change(u8, u16),
        Remove(u8),
        Reserve(u8),
        Shrink,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => any::<(u8, u16)>().prop_map(|(name, value)| Step::Insert(name, value)),
            2 => any::<(u8, u16)>().prop_map(|(name, value)| Step::GetOrInsert(name, value)),
            1 => any::<(u8, u16)>().prop_map(|(name, value)| Step::Change(name, value)),
            5 => any::<u8>().prop_map(Step::Remove),
            1 => any::<u8>().prop_map(Step::Reserve),
            1 => Just(Step::Shrink),
            1 => Just(Step::Clear),
        ]
    }

    /// One of a few names, so that most steps meet one that is there.
    fn name(number: u8) -> Name {
        Name::from(format!("name {}", number % 40).into_bytes())
    }

    proptest! {
        #[test]
        fn it_holds_what_the_standard_map_holds(steps in prop::collection::vec(step(), 0..200)) {
            let mut map = NameMap::default();
            let mut expected = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert(number, value) => {
                        prop_assert_eq!(map.insert(name(number), value), expected.insert(name(number), value));
                    }
                    Step::GetOrInsert(number, value) => {
                        let found = *map.get_or_insert_with(&name(number), || value);
                        prop_assert_eq!(found, *expected.entry(name(number)).or_insert(value));
                    }
                    Step::Change(number, value) => {
                        let (found, wanted) = (map.get_mut(&name(number)), expected.get_mut(&name(number)));
                        prop_assert_eq!(found.is_some(), wanted.is_some());
                        found.into_iter().chain(wanted).for_each(|found| *found = value);
                    }
                    Step::Remove(number) => prop_assert_eq!(map.remove(&name(number)), expected.remove(&name(number))),
                    Step::Reserve(names) => map.reserve(names.into()),
                    Step::Shrink => map.shrink_to_fit(),
                    Step::Clear => {
                        map.clear();
                        expected.clear();
                    }
                }
                prop_assert_eq!((map.len(), map.is_empty()), (expected.len(), expected.is_empty()));
                for number in 0..40 {
                    let name = name(number);
                    prop_assert_eq!(map.get(&name), expected.get(&name));
                    prop_assert_eq!(map.contains_key(&name), expected.contains_key(&name));
                }
                prop_assert_eq!(map.iter().collect::<HashMap<_, _>>(), expected.iter().collect());
                prop_assert_eq!(map.keys().collect::<HashSet<_>>(), expected.keys().collect());
                prop_assert_eq!(&map.clone().into_iter().collect::<HashMap<_, _>>(), &expected);
            }
        }
    }

    /// A map that has as many places as it holds names.
    fn full(names: u32) -> NameMap<u32> {
        let mut map = NameMap::default();
        map.reserve(names as usize);
        map.extend((0..names).map(|number| (numbered(number), number)));
        assert_eq!(map.entries.capacity(), names as usize);
        map
    }

    fn numbered(number: u32) -> Name {
        Name::from(&number.to_be_bytes()[..])
    }

    #[test]
    fn half_of_the_places_are_given_back_once_three_of_four_are_free() {
        let mut map = full(8192);
        for number in 2048..8192 {
            map.remove(&numbered(number));
        }
        assert_eq!(map.entries.capacity(), 8192);
        let positions = map.positions.capacity();
        map.remove(&numbered(0));
        assert_eq!(map.entries.capacity(), 2 * 2047);
        assert!(map.positions.capacity() < positions);
        map.shrink_to_fit();
        assert_eq!((map.len(), map.entries.capacity()), (2047, 2047));
    }

    #[test]
    fn a_few_places_are_kept_for_the_names_to_come() {
        let mut map = full(FREE_PLACES as u32);
        for number in 0..FREE_PLACES as u32 {
            map.remove(&numbered(number));
        }
        assert_eq!((map.len(), map.entries.capacity()), (0, FREE_PLACES));
    }

    #[test]
    fn names_that_are_removed_take_no_memory() {
        let mut map: NameMap<u32> = (0..100_000).map(|number| (numbered(number), number)).collect();
        for number in 0..99_000 {
            assert_eq!(map.remove(&numbered(number)), Some(number));
        }
        assert!(map.entries.capacity().max(map.positions.capacity()) <= 4 * 1024, "{}", map.positions.capacity());
        assert!((99_000..100_000).all(|number| map.get(&numbered(number)) == Some(&number)));
    }

    #[test]
    fn a_million_entries_need_no_room_for_two() {
        let mut map = NameMap::<[u64; 4]>::default();
        map.reserve(1_000_000);
        assert!(map.positions.capacity() >= 1_000_000, "{}", map.positions.capacity());
        let (name, places) = (Name::from(&b"name"[..]), map.positions.capacity().next_power_of_two());
        let bytes = map.entries.capacity() * size_of_val(&(name, [0u64; 4])) + places * (size_of::<u32>() + 1);
        assert!(bytes < 60_000_000, "{bytes}");
    }
}
