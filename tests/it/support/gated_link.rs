//! A network link that stops in the middle of a download until it is opened.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// A port that forwards to a server. Its connections end with those of the server and of the client.
pub(crate) struct GatedLink {
    pub(crate) host: String,
    gate: Arc<Gate>,
}

struct Gate {
    /// How many bytes of the server may still pass. `None` if all may.
    left: Mutex<Option<usize>>,
    is_open: Condvar,
}

impl Gate {
    /// Waits until bytes may pass, and returns how many, of at most `wanted`.
    fn pass(&self, wanted: usize) -> usize {
        let mut left = self.is_open.wait_while(self.left.lock().unwrap(), |left| *left == Some(0)).unwrap();
        let passed = left.map_or(wanted, |left| left.min(wanted));
        if let Some(left) = &mut *left {
            *left -= passed;
        }
        passed
    }
}

impl GatedLink {
    /// Forwards to `upstream`, `HOST:PORT`. Stops when the server has sent `bytes`.
    pub(crate) fn start(upstream: &str, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let gate = Arc::new(Gate { left: Mutex::new(Some(bytes)), is_open: Condvar::new() });
        let (upstream, opener) = (upstream.to_owned(), Arc::clone(&gate));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&upstream)) else { continue };
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || forward(from_client, to_server, None));
                let gate = Arc::clone(&opener);
                thread::spawn(move || forward(server, client, Some(&gate)));
            }
        });
        Self { host, gate }
    }

    /// Lets everything pass from now on.
    pub(crate) fn open(&self) {
        *self.gate.left.lock().unwrap() = None;
        self.gate.is_open.notify_all();
    }
}

impl Drop for GatedLink {
    fn drop(&mut self) {
        // Ends the threads that wait.
        self.open();
    }
}

/// Forwards until one side is closed.
fn forward(mut from: TcpStream, mut to: TcpStream, gate: Option<&Gate>) {
    let mut buffer = [0; 16 << 10];
    'read: while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let passed = gate.map_or(rest.len(), |gate| gate.pass(rest.len()));
            if to.write_all(&rest[..passed]).is_err() {
                break 'read;
            }
            rest = &rest[passed..];
        }
    }
    // The other side may be closed already.
    let _ = to.shutdown(Shutdown::Write);
}
