//! Plays a story: each step by the model, which does it and knows what may be published from then on.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::script::{Line, Story};
use super::step::{Content, How, Step};
use crate::oracle::name::{Name, Side};
use crate::oracle::tree::{Handle, Open, Tree};
use crate::support::files::{Random, noise};

/// Between two steps, at least and at most: long enough for the service to publish one before the next.
const PAUSE_MS: (usize, usize) = (10, 40);
/// The name of a link until it takes the place of another.
const STAGED: &str = "staged-link";

pub struct Player<'a> {
    story: &'a Story,
    pub tree: Tree,
    random: Random,
    open: BTreeMap<Name, Handle>,
    pauses: bool,
}

impl<'a> Player<'a> {
    /// Plays in these two directories.
    pub fn new(story: &'a Story, data: &Path, outside: &Path, seed: u64, pauses: bool) -> Self {
        let tree = Tree::new(data, outside);
        Self { story, tree, random: Random::new(seed), open: BTreeMap::new(), pauses }
    }

    pub fn prepare(&mut self) {
        let story = self.story;
        story.before.iter().for_each(|line| self.play_line(line));
    }

    pub fn play(&mut self) {
        let story = self.story;
        for line in &story.steps {
            self.play_line(line);
            if self.pauses {
                let (least, most) = PAUSE_MS;
                let pause = least + self.random.below(most - least);
                std::thread::sleep(Duration::from_millis(pause as u64));
            }
        }
        for (_, handle) in std::mem::take(&mut self.open) {
            self.tree.close(handle);
        }
    }

    fn play_line(&mut self, line: &Line) {
        self.tree.journal.operation += 1;
        let played = catch_unwind(AssertUnwindSafe(|| self.play_step(&line.step)));
        if let Err(panic) = played {
            eprintln!("{}: {:?} failed by the panic above", self.story.place(line), line.step);
            resume_unwind(panic);
        }
    }

    fn play_step(&mut self, step: &Step) {
        match step {
            Step::Touch(name) => self.touch(&self.target(name)),
            Step::Write(name, content) => self.fill(name, &Open::Emptied, content),
            Step::Append(name, content) => self.fill(name, &Open::Append, content),
            Step::Overwrite(name, at, content) => self.fill(name, &Open::At(*at), content),
            Step::Map(name) => self.map(&self.target(name)),
            Step::Truncate(name, length) => self.truncate(&self.target(name), *length),
            Step::Appear(name, content) => self.appear(name, content),
            Step::Open(name, how) => self.open(name, *how),
            Step::Put(name, content) => self.put(name, content),
            Step::Close(name) => {
                let handle = self.open.remove(name).expect("it is open");
                self.tree.close(handle);
            }
            Step::Pause(milliseconds) => std::thread::sleep(Duration::from_millis(*milliseconds)),
            _ => self.change_names(step),
        }
    }

    /// The steps that write nothing.
    fn change_names(&mut self, step: &Step) {
        let tree = &mut self.tree;
        match step {
            Step::MakeDirectory(name) => tree.make_directory(name),
            Step::MakeDirectories(name) => self.make_directories(name),
            Step::RemoveDirectory(name) => tree.remove_directory(name),
            Step::Remove(name) => tree.remove(name),
            Step::RemoveTree(name) => tree.remove_tree(name),
            Step::Move(from, to) => tree.rename(from, to),
            Step::Exchange(one, other) => tree.exchange(one, other),
            Step::Link(from, to) => tree.link(from, to),
            Step::SymbolicLink(target, name) => tree.symbolic_link(name, name, target),
            Step::ReplaceLink(target, name) => {
                let staged = Name::top(Side::Staging).child(STAGED);
                tree.symbolic_link(&staged, name, target);
                tree.rename(&staged, name);
            }
            Step::Fifo(name) => tree.make_fifo(name),
            Step::Mode(name, mode) => tree.set_rights(name, *mode, rustix::process::geteuid().as_raw()),
            _ => unreachable!("a step that writes: {step:?}"),
        }
    }

    /// The file that a link leads to, which is what is opened by its name, or the name itself.
    fn target(&self, name: &Name) -> Name {
        self.tree.led_to(name).unwrap_or_else(|| name.clone())
    }

    fn bytes(&mut self, content: &Content) -> Vec<u8> {
        match content {
            Content::Noise(length) => noise(*length, self.random.next()),
            Content::Text(text) => text.clone().into_bytes(),
        }
    }

    fn fill(&mut self, name: &Name, how: &Open, content: &Content) {
        let bytes = self.bytes(content);
        // A file that is not there is made.
        let target = self.target(name);
        let how = if self.tree.is_free(&target) { &Open::Emptied } else { how };
        let mut handle = self.tree.open(&target, how);
        self.tree.write(&mut handle, &bytes);
        self.tree.close(handle);
    }

    fn touch(&mut self, name: &Name) {
        if self.tree.is_free(name) {
            return self.tree.save(name, &[]);
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        self.tree.retouch(name, "touched", |path| {
            utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).expect("utimensat");
        });
    }

    fn map(&mut self, name: &Name) {
        let bytes = noise(self.tree.length(name), self.random.next());
        let handle = self.tree.open(name, &Open::At(0));
        self.tree.write_mapped(handle, &bytes, false);
    }

    fn truncate(&mut self, name: &Name, length: usize) {
        let handle = self.tree.open(name, &Open::At(0));
        self.tree.set_length(&handle, length);
        self.tree.close(handle);
    }

    fn appear(&mut self, name: &Name, content: &Content) {
        let bytes = self.bytes(content);
        let mut handle = self.tree.nameless(name);
        self.tree.write(&mut handle, &bytes);
        self.tree.give_name(&handle, name);
        self.tree.close(handle);
    }

    fn open(&mut self, name: &Name, how: How) {
        let target = self.target(name);
        let how = match how {
            How::Emptied => &Open::Emptied,
            How::AtEnd => &Open::Append,
            How::AtStart => &Open::At(0),
        };
        let handle = self.tree.open(&target, how);
        let earlier = self.open.insert(name.clone(), handle);
        assert!(earlier.is_none(), "{name} is open already");
    }

    fn put(&mut self, name: &Name, content: &Content) {
        let bytes = self.bytes(content);
        let handle = self.open.get_mut(name).expect("it is open");
        self.tree.write(handle, &bytes);
    }

    fn make_directories(&mut self, name: &Name) {
        if !name.is_top() && !self.tree.is_directory(name) {
            self.make_directories(&name.parent());
            self.tree.make_directory(name);
        }
    }
}
