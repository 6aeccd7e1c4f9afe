//! What a start takes for confirmed. The other rules are held by the models of the whole watch.

use super::*;
use crate::files::root::tests::root;
use crate::files::version::Timestamp;

fn version(size: u64, changed: i64) -> Version {
    let stamp = |seconds| Timestamp { seconds, nanoseconds: 1 };
    Version { inode: 1, size, modified: stamp(1), changed: stamp(changed) }
}

/// What a start says of a name of which this is known, and what is known of it then.
fn taken(known: Option<Known>, regular: bool, seen: Option<Version>) -> (Before, Option<Known>) {
    let (_dir, root) = root();
    let mut node = Node::new(Directory::new(&Arc::new(root), b""), None, None);
    let name: Name = b"name"[..].into();
    if let Some(known) = known {
        node.known.insert(Arc::clone(&name), known);
    }
    let before = Confirmed::take_as_confirmed(&mut node, &name, regular, seen.map(|version| (version, false)));
    (before, node.known.get(&name).copied())
}

#[test]
fn a_file_that_is_the_known_one_keeps_what_is_known_of_its_content() {
    let known = Known::new(&version(1, 1), &Digests::of(b"x"), false);
    for changed in [1, 2] {
        let (before, after) = taken(Some(known), true, Some(version(1, changed)));
        assert!(matches!(before, Before::Same) && after.is_some_and(Known::is_read), "ctime {changed}");
    }
    // What a link leads to has not been read, so that ctime decides.
    assert!(matches!(taken(Some(known), false, Some(version(1, 1))).0, Before::Same));
    for (regular, seen) in [(true, version(2, 2)), (false, version(1, 2))] {
        let (before, after) = taken(Some(known), regular, Some(seen));
        assert!(matches!(before, Before::Other), "{seen:?}");
        assert!(after.is_some_and(|known| known.is_of(&seen) && !known.is_read()), "{seen:?}");
    }
    let (before, after) = taken(Some(known), false, None);
    assert!(matches!(before, Before::Other) && after.is_none(), "a link that leads nowhere");
    let (before, after) = taken(None, true, Some(version(1, 1)));
    assert!(matches!(before, Before::Nothing) && after.is_some_and(|known| known.is_of(&version(1, 1))));
}
