//! Links and what they lead through: a link's content changes with its target's, and no event of the kernel's names it.
//!
//! For each link in the tree the paths are kept on which its content depends: the file that it leads to, there or not yet,
//! and every other link on the way, of a directory too. Whatever happens at one of them happens to the link.
//!
//! A link takes some 300 bytes and its paths twice; beyond [`LINKS_MAX`] of them the others are read when something happens
//! to the link itself, or at a rescan.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::files::directory::DirectoryId;
use crate::files::names::{Map, Name};

/// Links that are followed, some 30 MB of them.
pub const LINKS_MAX: usize = 1 << 16;

/// The kernel follows no more in one path (path_resolution(7)).
const HOPS_MAX: usize = 40;

/// The absolute paths that a link depends on.
type Paths = Vec<Arc<[u8]>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Links {
    /// By the path that they depend on.
    followers: Map<Arc<[u8]>, Vec<(DirectoryId, Name)>>,
    /// The paths that each depends on.
    paths: Map<DirectoryId, Map<Name, Paths>>,
    len: usize,
}

impl Links {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A link depends on these absolute paths, and on no others. `false`: there is no room for it.
    pub fn set(&mut self, id: DirectoryId, name: &Name, paths: Paths) -> bool {
        self.remove(id, name);
        if self.len >= LINKS_MAX {
            return false;
        }
        for path in &paths {
            self.followers.entry(Arc::clone(path)).or_default().push((id, Arc::clone(name)));
        }
        self.paths.entry(id).or_default().insert(Arc::clone(name), paths);
        self.len += 1;
        true
    }

    /// No link stands there any more.
    pub fn remove(&mut self, id: DirectoryId, name: &Name) {
        let Some(names) = self.paths.get_mut(&id) else { return };
        let Some(paths) = names.remove(name) else { return };
        if names.is_empty() {
            self.paths.remove(&id);
        }
        self.forget(id, name, &paths);
    }

    /// A directory has been given up, and the links in it.
    pub fn all_gone(&mut self, id: DirectoryId) {
        for (name, paths) in self.paths.remove(&id).into_iter().flatten() {
            self.forget(id, &name, &paths);
        }
    }

    fn forget(&mut self, id: DirectoryId, name: &Name, paths: &[Arc<[u8]>]) {
        self.len -= 1;
        for path in paths {
            let Some(followers) = self.followers.get_mut(path) else { continue };
            followers.retain(|(at, it)| (*at, it) != (id, name));
            if followers.is_empty() {
                self.followers.remove(path);
            }
        }
    }

    /// The links that depend on an absolute path.
    #[must_use]
    pub fn followers(&self, path: &[u8]) -> Vec<(DirectoryId, Name)> {
        self.followers.get(path).cloned().unwrap_or_default()
    }
}

/// The paths below `root` (a real path) that the link `below` it depends on: those of the links on the way, of its own
/// directories too, and that of what it leads to in the end. Nothing outside is looked at, for a link may lead anywhere, to a
/// file system that hangs for one: from where it leads out it depends on nothing. `target` reads a link, and tells nothing of
/// what is none.
pub fn depends_on(root: &[u8], below: &[u8], target: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Paths {
    let own = [root, b"/", below].concat();
    let parts = |path: &[u8]| path.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut ahead: VecDeque<Vec<u8>> = parts(below).into();
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
        let relative = match leads_to.strip_prefix(b"/") {
            Some(_) => match leads_to.strip_prefix(root) {
                Some(inside) if inside.is_empty() || inside.starts_with(b"/") => {
                    at.truncate(root.len());
                    inside
                }
                _ => return paths,
            },
            None => {
                at.truncate(at.len() - part.len() - 1);
                &leads_to[..]
            }
        };
        parts(relative).into_iter().rev().for_each(|part| ahead.push_front(part));
    }
    if at != own {
        paths.push(at.into());
    }
    paths
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
    fn what_leads_out_or_in_a_circle_ends() {
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
    fn followers_are_those_of_the_links_that_are_there() {
        let (mut links, name) = (Links::default(), |text: &str| Name::from(text.as_bytes()));
        let paths = |all: &[&str]| all.iter().map(|path| Arc::from(path.as_bytes())).collect::<Vec<Arc<[u8]>>>();
        assert!(links.set(HERE, &name("a"), paths(&["/data/x", "/data/y"])));
        assert!(links.set(HERE.next(), &name("a"), paths(&["/data/x"])));
        assert_eq!(links.followers(b"/data/x").len(), 2);
        links.set(HERE, &name("a"), paths(&["/data/z"]));
        assert_eq!(links.followers(b"/data/x"), [(HERE.next(), name("a"))]);
        assert_eq!((links.followers(b"/data/y").len(), links.followers(b"/data/z").len()), (0, 1));
        links.all_gone(HERE.next());
        links.remove(HERE, &name("a"));
        assert!(links.is_empty() && links.followers.is_empty() && links.paths.is_empty());
    }
}
