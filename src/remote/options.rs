//! Where an engine is, and how it knows us.

use std::fmt;

/// Where an engine is, and how it knows us. `Debug` shows neither keys nor what is in headers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EndpointOptions {
    /// `grpc://HOST:PORT`, or `grpcs://HOST:PORT` with TLS.
    pub url: String,
    /// Which of the engine's instances; empty for the one without a name.
    pub instance: String,
    /// Sent with every call, such as `authorization` and `Bearer TOKEN`.
    pub headers: Vec<(String, String)>,
    /// Certificates in PEM that vouch for the engine, instead of the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Our certificate and its key in PEM, where the engine wants to see one.
    pub client_pem: Option<(Vec<u8>, Vec<u8>)>,
}

/// What is wrong with an [`EndpointOptions`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The address is none.
    #[error("`{url}` is no address of an engine: write grpc://HOST:PORT, or grpcs://HOST:PORT with TLS")]
    Url {
        /// The text, without what stands before an `@`.
        url: String,
    },
    /// Certificates without TLS.
    #[error("certificates are of no use with {url}: write grpcs:// for TLS")]
    NoTls {
        /// The address.
        url: String,
    },
    /// A header can't be sent.
    #[error("`{name}` can't be sent as a header: names are lowercase words with dashes, values are printable ASCII")]
    Header {
        /// Its name, never its value.
        name: String,
    },
    /// The text is no header.
    #[error("a header is written as 'NAME: VALUE'")]
    NoColon,
    /// Certificates or keys are none.
    #[error("the certificates or the key can't be used: {reason}")]
    Certificates {
        /// Why.
        reason: String,
    },
}

impl EndpointOptions {
    /// The engine at `url`, its instance without a name, without headers or certificates.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Reads `NAME: VALUE` and adds it.
    ///
    /// # Errors
    /// [`OptionsError::NoColon`].
    pub fn add_header(&mut self, text: &str) -> Result<(), OptionsError> {
        let (name, value) = text.split_once(':').ok_or(OptionsError::NoColon)?;
        self.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        Ok(())
    }

    /// Another service of the same people, at `url`: the same headers and certificates go there, unless they would travel
    /// without TLS to it and with TLS to this one.
    #[must_use]
    pub fn beside(&self, url: impl Into<String>) -> Self {
        let other = Self::new(url);
        match (self.has_tls(), other.has_tls()) {
            (true, false) => other,
            _ => Self { url: other.url, ..self.clone() },
        }
    }

    fn has_tls(&self) -> bool {
        ["grpcs://", "https://"].iter().any(|scheme| self.url.starts_with(scheme))
    }

    /// The address without what nobody should read, for people.
    pub(super) fn place(&self) -> String {
        match self.url.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host)),
            None => self.url.rsplit_once('@').map_or(&*self.url, |(_, host)| host).to_owned(),
        }
    }

    /// The address as HTTP has it, and whether TLS is wanted.
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
        // Without a port, TLS means 443 as everywhere.
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
        let plain = EndpointOptions { client_pem: None, url: "grpc://host:1".into(), ..options };
        assert_eq!(plain.beside("grpc://logs:1").headers, plain.headers);
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
