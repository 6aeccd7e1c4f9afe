//! What a file, a directory and a data directory are.

pub mod directory;
pub mod errno;
pub mod lease;
pub mod listing;
pub mod names;
pub mod root;
pub mod unread;
pub mod version;
