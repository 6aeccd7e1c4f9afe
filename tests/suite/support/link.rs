//! A network between the service and its broker that a test can cut, or through which no answer comes back: a port of the
//! test's own that forwards each connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// Bytes forwarded at a time.
const PIECE: usize = 64 * 1024;

#[derive(Default)]
struct State {
    cut: bool,
    holds_answers: bool,
    /// Both sides of each connection.
    streams: Vec<TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the link's state")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

pub struct Link {
    port: u16,
    shared: Arc<Shared>,
}

impl Link {
    /// Forwards to this port of the loopback.
    pub fn to(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        // It ends with the test's process.
        thread::spawn(move || {
            for service in listener.incoming() {
                connect(&accepting, service.expect("a connection"), broker);
            }
        });
        Self { port, shared }
    }

    /// A URL of the broker, through this link.
    pub fn url(&self, direct: &str) -> String {
        let (before, vhost) = direct.rsplit_once('/').expect("a virtual host");
        let (login, _) = before.rsplit_once(':').expect("a port");
        format!("{login}:{}/{vhost}", self.port)
    }

    /// From now on the broker gets what the service sends, and nothing comes back.
    pub fn hold_answers(&self) {
        self.shared.change(|state| state.holds_answers = true);
    }

    /// Ends every connection, and each new one at once.
    pub fn cut(&self) {
        self.shared.change(|state| {
            state.cut = true;
            for stream in state.streams.drain(..) {
                let _ = stream.shutdown(Shutdown::Both); // ended already
            }
        });
    }

    /// From now on all goes through.
    pub fn mend(&self) {
        self.shared.change(|state| (state.cut, state.holds_answers) = (false, false));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

fn connect(shared: &Arc<Shared>, service: TcpStream, broker: u16) {
    let mut state = shared.state();
    if state.cut {
        return;
    }
    let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { return };
    for (from, to, answers) in [(&service, &broker, false), (&broker, &service, true)] {
        state.streams.push(from.try_clone().expect("a descriptor"));
        let (from, to) = (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
        let shared = Arc::clone(shared);
        thread::spawn(move || forward(&shared, from, to, answers));
    }
}

fn forward(shared: &Shared, mut from: TcpStream, mut to: TcpStream, answers: bool) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let held = |state: &mut State| answers && state.holds_answers && !state.cut;
        let state = shared.changed.wait_while(shared.state(), held).expect("the link's state");
        if state.cut {
            break;
        }
        drop(state);
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both); // ended already
    }
}
