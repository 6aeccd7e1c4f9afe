//! Symbolic links and the paths that they lead through: a link's content changes with its target, and no event of the kernel
//! names the link then.
//!
//! For each link in the tree this keeps the paths on which its content depends: the target, whether it exists or not, and
//! every other link on the way, those to directories included. A change at one of these paths is a change of the link.
//!
//! A link takes some 300 bytes, and its paths twice. Links beyond [`LINKS_MAX`] are read when the link itself changes, or at
//! a rescan.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};
use crate::files::root::Root;

/// Links that are followed. They take some 30 MB.
pub(crate) const LINKS_MAX: usize = 1 << 16;

/// The kernel follows no more links in one path (path_resolution(7)).
const HOPS_MAX: usize = 40;

/// The absolute paths that a link depends on.
type Paths = Vec<Arc<[u8]>>;

/// The links that are followed.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Links by a path that they depend on, in order, so that those below a directory are neighbors. None of the lists is
    /// empty.
    followers: BTreeMap<Arc<[u8]>, Vec<(DirectoryId, Name)>>,
    /// The paths that each link depends on. None of the inner maps is empty.
    paths: Map<DirectoryId, Map<Name, Paths>>,
    len: usize,
    ended: u64,
}

impl Links {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many links have ended, or led elsewhere from then on.
    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    /// A link depends on exactly these absolute paths. Returns whether there was room for it.
    pub(crate) fn set(&mut self, id: DirectoryId, name: &Name, paths: Paths) -> bool {
        self.remove(id, name);
        if self.len >= LINKS_MAX {
            return false;
        }
        for path in &paths {
            self.followers.entry(Arc::clone(path)).or_default().push((id, Arc::clone(name)));
        }
        let before = self.paths.entry(id).or_default().insert(Arc::clone(name), paths);
        assert!(before.is_none(), "a link is followed twice");
        self.len += 1;
        true
    }

    /// Whether a link depends on these paths already.
    pub(crate) fn depends_on(&self, id: DirectoryId, name: &Name, paths: &Paths) -> bool {
        self.paths.get(&id).and_then(|names| names.get(name)) == Some(paths)
    }

    /// The name is no link any more. `false`: it was none.
    pub(crate) fn remove(&mut self, id: DirectoryId, name: &Name) -> bool {
        let Some(names) = self.paths.get_mut(&id) else { return false };
        let Some(paths) = names.remove(name) else { return false };
        if names.is_empty() {
            self.paths.remove(&id);
        }
        self.unfollow(id, name, &paths);
        true
    }

    /// A directory was removed from the tree, with the links in it.
    pub(crate) fn remove_directory(&mut self, id: DirectoryId) {
        for (name, paths) in self.paths.remove(&id).into_iter().flatten() {
            self.unfollow(id, &name, &paths);
        }
    }

    fn unfollow(&mut self, id: DirectoryId, name: &Name, paths: &[Arc<[u8]>]) {
        self.len -= 1;
        self.ended += 1;
        for path in paths {
            // A path that a link leads through twice is done with the first time.
            let Some(followers) = self.followers.get_mut(path) else { continue };
            followers.retain(|(at, it)| (*at, it) != (id, name));
            if followers.is_empty() {
                self.followers.remove(path);
            }
        }
    }

    /// The links that depend on an absolute path.
    pub(crate) fn followers(&self, path: &[u8]) -> Vec<(DirectoryId, Name)> {
        self.followers.get(path).cloned().unwrap_or_default()
    }

    /// The paths at or below an absolute path that links depend on.
    pub(crate) fn followed_from(&self, path: &[u8]) -> Vec<Arc<[u8]>> {
        let at = self.followers.get_key_value(path).map(|(path, _)| path);
        let prefix = [path, b"/"].concat();
        at.into_iter().chain(self.from(&prefix)).cloned().collect()
    }

    /// The links that depend on an absolute path or on one below it.
    pub(crate) fn followers_from(&self, path: &[u8]) -> Vec<(DirectoryId, Name)> {
        let below = self.followed_from(path);
        below.iter().flat_map(|path| self.followers(path)).collect()
    }

    /// Whether a link depends on a path below an absolute path.
    pub(crate) fn lead_below(&self, path: &[u8]) -> bool {
        let prefix = [path, b"/"].concat();
        self.from(&prefix).next().is_some()
    }

    fn from<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = &'a Arc<[u8]>> {
        let from = self.followers.range::<[u8], _>((Bound::Excluded(prefix), Bound::Unbounded));
        from.map(|(path, _)| path).take_while(move |path| path.starts_with(prefix))
    }
}

/// The path of a data directory, to which a path below it is appended with a slash.
pub(crate) fn real(root: &Root) -> &[u8] {
    let path = root.path().as_os_str().as_encoded_bytes();
    path.strip_suffix(b"/").unwrap_or(path) // it may be /
}

/// The paths that the link at `root`/`below` depends on: each link on the way, to its own directories too, and the final
/// target. `root` is a real path. `target` reads a link, and returns nothing for any other file.
///
/// Nothing outside of `root` is examined, because a link can lead to a file system that hangs. From the point where it
/// leads out, a link depends on nothing.
pub(crate) fn depends_on(root: &[u8], below: &[u8], target: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Paths {
    let own = [root, b"/", below].concat();
    let mut ahead: VecDeque<Vec<u8>> = parts(below).collect();
    let mut at = root.to_vec();
    let mut paths = Paths::new();
    let mut hops = 0;
    while let Some(part) = ahead.pop_front() {
        match &part[..] {
            b"" | b"." => continue,
            b".." if at.len() <= root.len() => return paths,
            b".." => {
                at.truncate(at.iter().rposition(|&byte| byte == b'/').unwrap_or(root.len()));
                continue;
            }
            name => at.extend([b"/", name].concat()),
        }
        let Some(leads_to) = target(&at) else { continue };
        hops += 1;
        if hops > HOPS_MAX {
            return paths;
        }
        if at != own {
            paths.push((&at[..]).into());
        }
        let relative = if leads_to.starts_with(b"/") {
            let Some(inside) = inside(root, &leads_to) else { return paths };
            at.truncate(root.len());
            inside
        } else {
            at.truncate(at.len() - part.len() - 1);
            &leads_to[..]
        };
        parts(relative).rev().for_each(|part| ahead.push_front(part));
    }
    if at != own {
        paths.push(at.into());
    }
    paths
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|&byte| byte == b'/').map(<[u8]>::to_vec)
}

/// The rest of an absolute path that is `root` or below it.
pub(crate) fn inside<'a>(root: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: DirectoryId = DirectoryId::FIRST;

    fn through(links: &[(&str, &str)], below: &str) -> Vec<String> {
        let target = |path: &[u8]| {
            let found = links.iter().find(|(link, _)| link.as_bytes() == path);
            found.map(|(_, target)| target.as_bytes().to_vec())
        };
        let paths = depends_on(b"/data", below.as_bytes(), target);
        paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn a_link_depends_on_its_target_and_on_every_link_on_the_way() {
        let links = [
            ("/data/a", "file"),
            ("/data/b", "sub/../a"),
            ("/data/c", "/data/sub/file"),
            ("/data/d", "current/file"),
            ("/data/current", "releases/2"),
            ("/data/sub/up", "../file"),
        ];
        assert_eq!(through(&links, "a"), ["/data/file"]);
        assert_eq!(through(&links, "b"), ["/data/a", "/data/file"]);
        assert_eq!(through(&links, "c"), ["/data/sub/file"]);
        assert_eq!(through(&links, "d"), ["/data/current", "/data/releases/2/file"]);
        assert_eq!(through(&links, "sub/up"), ["/data/file"]);
    }

    #[test]
    fn a_link_that_leads_out_or_in_a_circle_depends_on_no_more() {
        let links = [
            ("/data/out", "/etc/passwd"),
            ("/data/beside", "/database/file"),
            ("/data/up", "../../etc/passwd"),
            ("/data/over", "out"),
            ("/data/one", "two"),
            ("/data/two", "one"),
            ("/data/self", "self"),
        ];
        for link in ["out", "beside", "up", "self"] {
            assert!(through(&links, link).is_empty(), "{link}");
        }
        assert_eq!(through(&links, "over"), ["/data/out"]);
        assert!(through(&links, "one").iter().all(|path| path == "/data/two"));
    }

    #[test]
    fn followers_are_the_links_that_exist() {
        let (mut links, name) = (Links::default(), |text: &str| Name::from(text.as_bytes()));
        let paths = |all: &[&str]| all.iter().map(|path| Arc::from(path.as_bytes())).collect::<Vec<Arc<[u8]>>>();
        assert!(links.set(HERE, &name("a"), paths(&["/data/x", "/data/y"])));
        assert!(links.set(HERE.next(), &name("a"), paths(&["/data/x"])));
        assert_eq!(links.followers(b"/data/x").len(), 2);
        links.set(HERE, &name("a"), paths(&["/data/z"]));
        assert_eq!(links.followers(b"/data/x"), [(HERE.next(), name("a"))]);
        assert_eq!((links.followers(b"/data/y").len(), links.followers(b"/data/z").len()), (0, 1));
        links.set(HERE, &name("b"), paths(&["/data/sub/x", "/data/sub.x", "/data/sub"]));
        assert_eq!(links.followed_from(b"/data/sub"), paths(&["/data/sub", "/data/sub/x"]));
        assert!(links.lead_below(b"/data/sub") && !links.lead_below(b"/data/su") && !links.lead_below(b"/data/z"));
        links.remove(HERE, &name("b"));
        links.remove_directory(HERE.next());
        links.remove(HERE, &name("a"));
        assert!(links.is_empty() && links.followers.is_empty() && links.paths.is_empty());
    }
}
