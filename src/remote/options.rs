//! The address of an engine, and the credentials for it.

use std::{fmt, net::IpAddr};

/// The address of an engine, and the credentials for it. `Debug` shows neither keys nor the values of
/// headers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EndpointOptions {
    /// `grpc://HOST:PORT`, or `grpcs://HOST:PORT` with TLS.
    pub url: String,
    /// The engine's instance; empty for the one without a name.
    pub instance: String,
    /// Headers that are sent with every call, such as `authorization` and `Bearer TOKEN`.
    pub headers: Vec<(String, String)>,
    /// Certificates in PEM that vouch for the engine, instead of the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Our certificate and its key in PEM, if the engine requires one.
    pub client_pem: Option<(Vec<u8>, Vec<u8>)>,
}

/// An error in an [`EndpointOptions`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The address is invalid.
    #[error("invalid engine address `{url}`: expected grpc://HOST:PORT, or grpcs://HOST:PORT for TLS")]
    Url {
        /// The text, without what precedes an `@`.
        url: String,
    },
    /// Certificates are given, but the address is without TLS.
    #[error("certificates have no effect with {url}: use grpcs:// for TLS")]
    NoTls {
        /// The address.
        url: String,
    },
    /// A header would be sent over a network without TLS.
    #[error(
        "the header `{name}` is not sent to {url} without encryption: use grpcs:// for TLS, or a tunnel on \
         this machine"
    )]
    Unencrypted {
        /// The header's name.
        name: String,
        /// The address.
        url: String,
    },
    /// A header's name or value is invalid.
    #[error(
        "invalid header `{name}`: the name must consist of lowercase words and dashes, the value of printable ASCII"
    )]
    Header {
        /// Its name, never its value.
        name: String,
    },
    /// The text is not a header.
    #[error("invalid header: expected 'NAME: VALUE'")]
    NoColon,
    /// The certificates or the key are invalid.
    #[error("invalid certificates or key: {reason}")]
    Certificates {
        /// The reason.
        reason: String,
    },
}

impl EndpointOptions {
    /// Creates options for the engine at `url`, with the instance without a name and no headers or
    /// certificates.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Parses `NAME: VALUE` and adds it as a header.
    ///
    /// # Errors
    /// Returns [`OptionsError::NoColon`] if there is no colon.
    pub fn add_header(&mut self, text: &str) -> Result<(), OptionsError> {
        let (name, value) = text.split_once(':').ok_or(OptionsError::NoColon)?;
        self.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        Ok(())
    }

    /// Returns the options of another service of the same provider, at `url`. The same headers and
    /// certificates are sent there, unless they would travel over a network without TLS, or would be sent
    /// without TLS although this engine uses TLS.
    #[must_use]
    pub fn beside(&self, url: impl Into<String>) -> Self {
        let other = Self::new(url);
        if other.has_tls() || !self.has_tls() && other.is_loopback() {
            Self { url: other.url, ..self.clone() }
        } else {
            other
        }
    }

    /// Returns whether the address is a loopback address.
    fn is_loopback(&self) -> bool {
        let rest = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        };
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    fn has_tls(&self) -> bool {
        ["grpcs://", "https://"].iter().any(|scheme| self.url.starts_with(scheme))
    }

    /// Returns the address without secrets, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        match self.url.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host)),
            None => self.url.rsplit_once('@').map_or(&*self.url, |(_, host)| host).to_owned(),
        }
    }

    /// Returns the address as an HTTP URL, and whether to use TLS.
    pub(super) fn http_url(&self) -> Result<(String, bool), OptionsError> {
        let wrong = || OptionsError::Url { url: self.place() };
        let (scheme, rest) = self.url.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "grpc" | "http" => false,
            "grpcs" | "https" => true,
            _ => return Err(wrong()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.is_empty() || authority.contains(['/', '@', '?', '#', ' ']) {
            return Err(wrong());
        }
        if !tls && (self.ca_pem.is_some() || self.client_pem.is_some()) {
            return Err(OptionsError::NoTls { url: self.place() });
        }
        // Any header may be a secret, whatever its name.
        if let Some((name, _)) = self.headers.first().filter(|_| !tls && !self.is_loopback()) {
            return Err(OptionsError::Unencrypted { name: name.clone(), url: self.place() });
        }
        // Without a port, the default for TLS is 443.
        Ok((format!("{}://{authority}", if tls { "https" } else { "http" }), tls))
    }
}

impl fmt::Debug for EndpointOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointOptions")
            .field("url", &self.place())
            .field("instance", &self.instance)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("ca", &self.ca_pem.is_some())
            .field("client_certificate", &self.client_pem.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_mistakes_are_told() {
        let http = |url: &str| EndpointOptions::new(url).http_url().ok();
        assert_eq!(http("grpc://127.0.0.1:50051"), Some(("http://127.0.0.1:50051".into(), false)));
        assert_eq!(http("grpcs://engine.example/"), Some(("https://engine.example".into(), true)));
        for wrong in ["", "engine:80", "ftp://x", "grpc://", "grpc://a/b", "grpc://user:pw@host:1"] {
            assert_eq!(http(wrong), None, "{wrong}");
        }
        let with_ca = EndpointOptions { ca_pem: Some(b"x".to_vec()), ..EndpointOptions::new("grpc://host:1") };
        assert!(matches!(with_ca.http_url(), Err(OptionsError::NoTls { .. })));
    }

    #[test]
    fn what_goes_with_tls_here_goes_nowhere_without_it() {
        let mut options = EndpointOptions::new("grpcs://host:1");
        options.add_header("authorization: Bearer s3cret").unwrap();
        options.client_pem = Some((b"cert".to_vec(), b"key".to_vec()));
        assert_eq!(options.beside("grpc://logs:1"), EndpointOptions::new("grpc://logs:1"));
        let with_tls = options.beside("grpcs://logs:1");
        assert_eq!((&*with_tls.url, &with_tls.headers), ("grpcs://logs:1", &options.headers));
        assert_eq!(with_tls.client_pem, options.client_pem);
        let plain = EndpointOptions { client_pem: None, url: "grpc://127.0.0.1:1".into(), ..options };
        assert_eq!(plain.beside("grpc://localhost:2").headers, plain.headers);
        assert_eq!(plain.beside("grpcs://logs:2").headers, plain.headers);
        assert_eq!(plain.beside("grpc://logs:1"), EndpointOptions::new("grpc://logs:1"));
    }

    #[test]
    fn headers_go_over_no_network_without_tls() {
        let with_header = |url: &str| {
            let mut options = EndpointOptions::new(url);
            options.add_header("authorization: Bearer s3cret").unwrap();
            options.http_url()
        };
        for here in ["grpc://localhost:1", "grpc://127.0.0.1", "http://127.8.8.8:1/", "grpc://[::1]:1", "grpcs://host"]
        {
            assert!(with_header(here).is_ok(), "{here}");
        }
        for there in [
            "grpc://host:1",
            "http://10.0.0.1",
            "grpc://[fe80::1]:1",
            "grpc://localhost.example:1",
            "grpc://127.0.0.1.example",
        ] {
            let error = with_header(there).unwrap_err();
            assert!(matches!(error, OptionsError::Unencrypted { .. }), "{there}: {error}");
            assert!(error.to_string().contains("`authorization`") && !error.to_string().contains("s3cret"), "{error}");
            assert!(EndpointOptions::new(there).http_url().is_ok(), "{there}");
        }
    }

    #[test]
    fn what_is_secret_is_in_no_text() {
        let mut options = EndpointOptions::new("grpc://user:s3cret@host:1");
        options.add_header("Authorization: Bearer s3cret").unwrap();
        options.client_pem = Some((b"s3cret".to_vec(), b"s3cret".to_vec()));
        assert_eq!(options.headers, [("authorization".to_owned(), "Bearer s3cret".to_owned())]);
        assert!(!format!("{options:?}").contains("s3cret"), "{options:?}");
        assert!(!options.http_url().unwrap_err().to_string().contains("s3cret"));
    }
}
