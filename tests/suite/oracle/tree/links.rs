//! Symbolic links in the model: where they lead, and what may be published for them.

use std::collections::VecDeque;
use std::os::unix::fs::symlink;

use super::super::name::{Name, Side};
use super::{Entry, Id, Tree};

/// A longer chain of links leads nowhere.
const HOPS_MAX: usize = 20;

impl Tree {
    /// A symbolic link, made at a free place for another: there it leads to that path of the watched directory, or of
    /// the one beside it, whatever is there.
    pub fn symbolic_link(&mut self, made: &Name, place: &Name, target: &Name) {
        let text = match target.side() {
            Side::Data => format!("{}{}", "../".repeat(place.parent().depth()), target.below()),
            // Out of the watched directory.
            Side::Staging => self.path(target).to_str().expect("a plain path").to_owned(),
        };
        self.begin();
        symlink(&text, self.path(made)).expect("symlink");
        self.journal.log(format!("{made} made, a link to {target}"));
        self.enter(made, Entry::Link(text));
        self.follow_links();
    }

    /// The file that a link leads to, if any, and its own path.
    pub(super) fn resolve(&self, link: &Name) -> Option<(Id, Name)> {
        let Some(Entry::Link(text)) = self.entries.get(link) else { return None };
        let parts = |text: &str| text.split('/').map(str::to_owned).collect::<VecDeque<_>>();
        let (mut at, mut ahead) = (link.parent(), parts(text));
        let mut hops = 1;
        while let Some(part) = ahead.pop_front() {
            // An absolute path, which leads out.
            if part.is_empty() {
                return None;
            }
            if part == ".." {
                if at.is_top() {
                    return None;
                }
                at = at.parent();
                continue;
            }
            let name = at.child(&part);
            match self.entries.get(&name)? {
                Entry::File(id) => return ahead.is_empty().then_some((*id, name)),
                Entry::Directory => at = name,
                Entry::Fifo => return None,
                Entry::Link(text) => {
                    hops += 1;
                    if hops > HOPS_MAX {
                        return None;
                    }
                    let mut through = parts(text);
                    through.append(&mut ahead);
                    ahead = through;
                }
            }
        }
        None
    }

    /// The file to which a name leads, if it is a link to one.
    pub fn led_to(&self, link: &Name) -> Option<Name> {
        self.resolve(link).map(|(_, name)| name)
    }

    /// What may be published for links, since a name has changed or a file is complete.
    pub(super) fn follow_links(&mut self) {
        let links =
            self.entries.iter().filter(|(name, entry)| name.side() == Side::Data && matches!(entry, Entry::Link(_)));
        let links: Vec<Name> = links.map(|(name, _)| name.clone()).collect();
        self.led_to.retain(|name, _| links.contains(name));
        for link in links {
            let file = self.resolve(&link).map(|(id, _)| id);
            if self.led_to.insert(link.clone(), file) != Some(file) {
                self.journal.turn(&link, self.begun, false);
            }
            if let Some(id) = file.filter(|id| self.inodes[*id].writers == 0) {
                let (hash, length) = (self.hash(id).to_owned(), self.inodes[id].content.len());
                self.journal.allow(&link, &hash, length);
            }
        }
    }
}
