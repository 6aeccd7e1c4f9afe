//! The paths of the workload: in the watched directory, and in the one beside it.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The watched directory.
    Data,
    /// Beside it.
    Staging,
}

/// One of a few, so that histories cross.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    side: Side,
    /// Empty for the side's own directory.
    below: String,
}

impl Name {
    /// The side's own directory.
    pub fn top(side: Side) -> Self {
        Self { side, below: String::new() }
    }

    pub fn side(&self) -> Side {
        self.side
    }

    pub fn below(&self) -> &str {
        &self.below
    }

    pub fn is_top(&self) -> bool {
        self.below.is_empty()
    }

    pub fn child(&self, last: &str) -> Self {
        let below = if self.is_top() { last.to_owned() } else { format!("{}/{last}", self.below) };
        Self { below, ..*self }
    }

    /// The side's own directory is its own parent.
    pub fn parent(&self) -> Self {
        let below = self.below.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        Self { below, ..*self }
    }

    /// 0 for the side's own directory.
    pub fn depth(&self) -> usize {
        self.below.split('/').filter(|part| !part.is_empty()).count()
    }

    /// Whether it is that directory, or somewhere below it.
    pub fn within(&self, directory: &Self) -> bool {
        self.side == directory.side
            && (directory.is_top()
                || self
                    .below
                    .strip_prefix(&directory.below)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }

    /// Where it is once the directory `from`, that it is or is below, has become `to`.
    pub fn moved(&self, from: &Self, to: &Self) -> Self {
        Self { side: to.side, below: format!("{}{}", to.below, &self.below[from.below.len()..]) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Side::Data => to.write_str(&self.below),
            Side::Staging => write!(to, "staging/{}", self.below),
        }
    }
}
