//! Files, directories and data directories: names, versions, paths, and what errors of the kernel mean.

pub mod directory;
pub mod errno;
pub mod inline_reads;
pub mod lease;
pub mod listing;
pub mod mounts;
pub mod name_map;
pub mod names;
pub mod root;
pub mod unread;
pub mod version;
pub mod whole;
pub mod writers;
