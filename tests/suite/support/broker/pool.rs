//! Nodes for tests that disturb all of a node: one at a time has each of them, and the next takes it over, because to boot
//! one takes nine seconds of a core.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::Broker;

/// For each test that has the node in its turn; when they are given away the node makes more.
const VHOSTS: usize = 4;

/// They are never dropped: each ends with the process.
static IDLE: Mutex<Vec<Broker>> = Mutex::new(Vec::new());

/// A node that a test has to itself while it holds this. Then what the test did to the node is undone, and others may have
/// it. A node that is dead, or does not serve, or whose test has failed is ended.
pub struct Borrowed {
    /// `None` only while it is dropped.
    broker: Option<Broker>,
}

impl Broker {
    /// A node of a test's own while it runs, for a test that disturbs all of it.
    pub fn borrow() -> Borrowed {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Borrowed { broker: Some(idle.unwrap_or_else(|| Self::start_with(VHOSTS))) }
    }
}

impl Deref for Borrowed {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        self.broker.as_ref().expect("held until the end")
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut Broker {
        self.broker.as_mut().expect("held until the end")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut broker = self.broker.take().expect("dropped once");
        if !std::thread::panicking() && broker.undisturb() {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(broker);
        }
    }
}
