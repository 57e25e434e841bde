//! The cryptography behind TLS, which all clients of this process share.

/// Chooses ring as the provider of cryptography for clients that do not name one. Without that, a client
/// would not know which of those that are built in it should use. The embedding program's own choice stays.
pub(crate) fn choose_provider() {
    // Fails if there is a choice already, which is equally good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
