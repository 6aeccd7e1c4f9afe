//! One step of a story, and how it is written.

use super::words::Word;
use crate::oracle::name::{Name, Side};

/// Begins the path of what is beside the watched directory.
const OUTSIDE: &str = "outside:";
/// `1K` and `1M` are 1,024 and 1,048,576 bytes.
const UNITS: [(char, usize); 2] = [('K', 1 << 10), ('M', 1 << 20)];
/// A story with a longer file would be one of large files, which have tests of their own.
const BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// So many bytes, never the same ones twice.
    Noise(usize),
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Emptied,
    AtEnd,
    AtStart,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes an empty file, or sets the times of one that is there.
    Touch(Name),
    Write(Name, Content),
    Append(Name, Content),
    /// Writes from a place on, and cuts nothing off.
    Overwrite(Name, usize, Content),
    /// Fills the whole file through a mapping.
    Map(Name),
    Truncate(Name, usize),
    /// Links in a file that had no name while it was written.
    Appear(Name, Content),
    Open(Name, How),
    Put(Name, Content),
    Close(Name),
    MakeDirectory(Name),
    /// With those above it.
    MakeDirectories(Name),
    RemoveDirectory(Name),
    Remove(Name),
    RemoveTree(Name),
    Move(Name, Name),
    Exchange(Name, Name),
    Link(Name, Name),
    SymbolicLink(Name, Name),
    /// A symbolic link in the place of what was there, by a rename.
    ReplaceLink(Name, Name),
    Fifo(Name),
    Mode(Name, u32),
    Pause(u64),
}

impl Step {
    /// A line of a script; an error in words.
    pub fn of(words: &[Word]) -> Result<Self, String> {
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        let step = match texts[..] {
            ["touch", path] => Self::Touch(name(path)?),
            ["write", path, _] => Self::Write(name(path)?, content(&words[2])?),
            ["append", path, _] => Self::Append(name(path)?, content(&words[2])?),
            ["overwrite", path, at, _] => Self::Overwrite(name(path)?, bytes(at)?, content(&words[3])?),
            ["map", path] => Self::Map(name(path)?),
            ["truncate", path, length] => Self::Truncate(name(path)?, bytes(length)?),
            ["appear", path, _] => Self::Appear(name(path)?, content(&words[2])?),
            ["open", path, how] => Self::Open(name(path)?, self::how(how)?),
            ["put", path, _] => Self::Put(name(path)?, content(&words[2])?),
            ["close", path] => Self::Close(name(path)?),
            ["mkdir", "-p", path] => Self::MakeDirectories(name(path)?),
            ["mkdir", path] => Self::MakeDirectory(name(path)?),
            ["rmdir", path] => Self::RemoveDirectory(name(path)?),
            ["rm", "-r", path] => Self::RemoveTree(name(path)?),
            ["rm", path] => Self::Remove(name(path)?),
            ["mv", from, to] => Self::Move(name(from)?, name(to)?),
            ["exchange", one, other] => Self::Exchange(name(one)?, name(other)?),
            ["ln", "-s", target, path] => Self::SymbolicLink(name(target)?, name(path)?),
            ["ln", "-sfn", target, path] => Self::ReplaceLink(name(target)?, name(path)?),
            ["ln", from, to] => Self::Link(name(from)?, name(to)?),
            ["mkfifo", path] => Self::Fifo(name(path)?),
            ["chmod", mode, path] => Self::Mode(name(path)?, self::mode(mode)?),
            ["pause", milliseconds] => Self::Pause(number(milliseconds)?),
            [verb, ..] => {
                return Err(format!("no step is written so: {verb} with {} words behind it", texts.len() - 1));
            }
            [] => return Err("no step".to_owned()),
        };
        Ok(step)
    }

    /// Whether it closes something to the service, which is another user where the tests run as root.
    pub fn closes(&self) -> bool {
        matches!(self, Self::Mode(_, mode) if mode & 0o004 == 0)
    }
}

fn name(path: &str) -> Result<Name, String> {
    let (side, below) = match path.strip_prefix(OUTSIDE) {
        Some(below) => (Side::Staging, below),
        None => (Side::Data, path),
    };
    if below.split('/').any(|part| ["", ".", ".."].contains(&part)) {
        return Err(format!("not a path below the directory: {path:?}"));
    }
    Ok(Name::top(side).child(below))
}

fn content(word: &Word) -> Result<Content, String> {
    if word.quoted { Ok(Content::Text(word.text.clone())) } else { bytes(&word.text).map(Content::Noise) }
}

fn bytes(text: &str) -> Result<usize, String> {
    let unit = UNITS.into_iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, each) = unit.map_or((text, 1), |(letter, each)| (text.trim_end_matches(letter), each));
    let bytes = digits.parse::<usize>().ok().and_then(|count| count.checked_mul(each));
    bytes.filter(|bytes| *bytes <= BYTES_MAX).ok_or(format!("not a number of bytes, of 64M at most: {text:?}"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("not a number: {text:?}"))
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or(format!("not a mode: {text:?}"))
}

fn how(text: &str) -> Result<How, String> {
    match text {
        "emptied" => Ok(How::Emptied),
        "at-end" => Ok(How::AtEnd),
        "at-start" => Ok(How::AtStart),
        _ => Err(format!("not a way to open a file: {text:?}")),
    }
}
