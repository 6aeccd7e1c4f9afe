//! What a file is to the service, whichever stage looks at it.

pub mod errno;
