//! Landlock: restricts a step on the host's network to its own abstract sockets.
//!
//! Abstract unix sockets, and the ids of their users, belong to the network namespace. So a step on the
//! host's network could talk to the X server, to the session bus, and to other steps. A step is a Landlock
//! domain: its processes connect to each other's abstract sockets and to none outside. Needs Linux 6.12.

use super::{SetupError, error::ResultExt, sys};

/// The first version of the Landlock interface that has scopes.
const SCOPES: u32 = 6;
/// The scope of connections and datagrams to abstract unix sockets.
const ABSTRACT_UNIX_SOCKET: u64 = 1;
/// The scope of signals. A step has its own process ids already, so this only protects its pid 1.
const SIGNAL: u64 = 1 << 1;

/// Returns whether this kernel can restrict a step's sockets and signals to the step.
pub(super) fn has_scopes() -> bool {
    sys::landlock_version().is_ok_and(|version| version >= SCOPES)
}

/// Restricts connections and signals of the calling thread, and of all that it starts, to themselves.
pub(super) fn scope() -> Result<(), SetupError> {
    sys::landlock_scope(ABSTRACT_UNIX_SOCKET | SIGNAL).doing(|| "keep the step's sockets and signals in it".into())
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
    };

    use super::*;

    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    fn a_scoped_thread_connects_to_its_own_abstract_sockets_alone() {
        if !has_scopes() {
            eprintln!("skipped: this kernel has no Landlock scopes ({:?})", sys::landlock_version());
            return;
        }
        let address = |side: &str| {
            let name = format!("hm-landlock-{}-{side}", std::process::id());
            SocketAddr::from_abstract_name(name.as_bytes()).unwrap()
        };
        let (outside, inside) = (address("outside"), address("inside"));
        let _outside = UnixListener::bind_addr(&outside).unwrap();
        // A domain belongs to a thread: this one ends with its thread.
        let scoped = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            UnixStream::connect_addr(&outside).expect("there is no domain yet");
            scope().unwrap();
            let _inside = UnixListener::bind_addr(&inside).unwrap();
            UnixStream::connect_addr(&inside).expect("the socket is of the domain");
            UnixStream::connect_addr(&outside).unwrap_err().kind()
        });
        assert_eq!(scoped.join().unwrap(), ErrorKind::PermissionDenied);
    }
}
