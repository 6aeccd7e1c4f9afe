//! A node of the fault suite's own, and what only this suite does to it.

use std::ops::{Deref, DerefMut};

use crate::support::broker::Broker;
use crate::support::wait::retry;

/// Seeds use them in turn, so that each begins with an unused one, and a node with few virtual hosts boots quickly.
const VHOSTS: usize = 8;

pub struct Node {
    broker: Broker,
    next_vhost: usize,
}

impl Node {
    pub fn start() -> Self {
        Self { broker: Broker::start_with(VHOSTS), next_vhost: 0 }
    }

    /// A virtual host's name, and its URL.
    pub fn vhost(&mut self) -> (String, String) {
        let name = format!("t{}", self.next_vhost % VHOSTS);
        self.next_vhost += 1;
        let url = self.broker.url("guest:guest", &name);
        (name, url)
    }

    /// RabbitMQ stops cleanly, and its Erlang virtual machine stays.
    pub fn stop(&mut self) {
        self.until("rabbit:stop(), rabbit:is_running()", "false");
    }

    pub fn start_again(&mut self) {
        // It answers "ok" and does nothing while the marker of the last boot is still being removed.
        self.until("rabbit:start(), rabbit:is_running()", "true");
        self.broker.wait_until_it_serves();
    }

    /// Evaluates an expression until it has this value.
    fn until(&self, expression: &str, wanted: &str) {
        retry(&format!("the value {wanted}"), || {
            let value = self.broker.eval(expression);
            if value == wanted { Ok(()) } else { Err(format!("{expression} is {value}")) }
        });
    }
}

impl Deref for Node {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.broker
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Broker {
        &mut self.broker
    }
}
