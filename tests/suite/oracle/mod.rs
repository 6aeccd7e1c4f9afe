//! The oracle: a record of all that was published, an exact model of the files, and the judgment of the one by the
//! other. The fault suite and the scenarios share it.

pub mod journal;
pub mod judge;
pub mod life;
pub mod name;
pub mod record;
pub mod repeats;
pub mod tree;
