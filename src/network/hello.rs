//! The name of the server in the first message of a TLS connection.

use rustls::server::Acceptor;

/// The most bytes of a first message.
const MAX_BYTES: usize = 64 << 10;

/// What is known of a connection by its first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// A TLS client that wants the server with this name, in lower case.
    Name(String),
    /// A TLS client that names no server.
    Nameless,
    /// It is not a TLS client.
    NotTls,
}

/// Reads the first message of a connection.
#[derive(Default)]
pub(super) struct HelloReader {
    acceptor: Acceptor,
    bytes: usize,
    /// Known once it is no longer incomplete.
    known: Option<Hello>,
}

impl HelloReader {
    /// Adds bytes, and returns what is known. Later bytes change nothing once that is more than
    /// [`Hello::Incomplete`].
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Hello {
        while self.known.is_none() && !bytes.is_empty() {
            let before = bytes.len();
            self.known = match self.acceptor.read_tls(&mut bytes) {
                Ok(1..) => {
                    self.bytes += before - bytes.len();
                    self.read()
                }
                Ok(0) | Err(_) => Some(Hello::NotTls),
            };
        }
        self.known.clone().unwrap_or(Hello::Incomplete)
    }

    fn read(&mut self) -> Option<Hello> {
        match self.acceptor.accept() {
            Ok(None) if self.bytes > MAX_BYTES => Some(Hello::NotTls),
            Ok(None) => None,
            Ok(Some(accepted)) => Some(match accepted.client_hello().server_name() {
                Some(name) => Hello::Name(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
                None => Hello::Nameless,
            }),
            Err(_) => Some(Hello::NotTls),
        }
    }
}
