//! The arguments of every command that talks to an engine.

use std::{
    convert::Infallible,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use hm_exec::remote::EndpointOptions;

use crate::failure::{Failure, Outcome};

/// Where an engine is, and how it knows us.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
    /// The engine: grpc://HOST:PORT, or grpcs://HOST:PORT with TLS
    #[arg(long = "remote", value_name = "URL", env = "HM_REMOTE")]
    pub(super) url: Option<String>,

    /// Which of the engine's instances
    #[arg(long = "remote-instance", value_name = "NAME", env = "HM_REMOTE_INSTANCE")]
    pub(super) instance: Option<String>,

    /// Where output is shown while steps run, where the engine does not do that itself: see `hm logstream`
    #[arg(id = "remote-logs", long = "remote-logs", value_name = "URL", env = "HM_REMOTE_LOGS")]
    pub(super) logs: Option<String>,

    /// Send a header with every call, such as 'authorization: Bearer TOKEN' (repeatable; in the variable, one a line)
    #[arg(
        long = "remote-header",
        value_name = "NAME: VALUE",
        env = "HM_REMOTE_HEADER",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub(super) headers: Vec<Header>,

    /// Certificates that vouch for the engine, in PEM, instead of the system's
    #[arg(long = "remote-ca", value_name = "FILE", env = "HM_REMOTE_CA")]
    pub(super) ca: Option<PathBuf>,

    /// Our certificate, in PEM
    #[arg(long = "remote-cert", value_name = "FILE", env = "HM_REMOTE_CERT")]
    pub(super) cert: Option<PathBuf>,

    /// Its key, in PEM
    #[arg(long = "remote-key", value_name = "FILE", env = "HM_REMOTE_KEY")]
    pub(super) key: Option<PathBuf>,
}

impl EngineArgs {
    /// The engine that the arguments name, and its log service; `None` where they name none. No file is looked into for it.
    pub(crate) fn endpoint(&self) -> Outcome<Option<Named>> {
        let Some(url) = given(&self.url) else { return Ok(None) };
        let mut engine = EndpointOptions::new(url);
        engine.instance = given(&self.instance).unwrap_or_default();
        engine.headers = self.read_headers()?;
        (engine.ca_pem, engine.client_pem) = read_pems(self.ca.as_deref(), self.cert.as_deref(), self.key.as_deref())?;
        let logs = given(&self.logs).map(|url| engine.beside(url));
        Ok(Some(Named { engine, logs }))
    }

    pub(super) fn read_headers(&self) -> Outcome<Vec<(String, String)>> {
        let mut read = EndpointOptions::default();
        for Header(text) in self.headers.iter().filter(|header| !header.0.trim().is_empty()) {
            read.add_header(text).map_err(|error| Failure::input(format_args!("--remote-header: {error}")))?;
        }
        Ok(read.headers)
    }
}

/// An engine that was named.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) engine: EndpointOptions,
    /// Where its log streams are, if not there.
    pub(crate) logs: Option<EndpointOptions>,
}

/// `NAME: VALUE`, of which nobody is shown the value.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Header(pub(super) String);

impl FromStr for Header {
    type Err = Infallible;

    /// What is wrong with it is told later: here the text would be repeated.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.split_once(':').map_or("(no header)", |(name, _)| name))
    }
}

/// What an argument says; a variable that is empty says nothing.
pub(super) fn given(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

/// Certificates that vouch for an engine, and our own with its key.
pub(super) type Pems = (Option<Vec<u8>>, Option<(Vec<u8>, Vec<u8>)>);

/// Reads files in PEM.
pub(super) fn read_pems(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Outcome<Pems> {
    let read = |path: &Path| {
        fs::read(path).map_err(|error| Failure::input(format_args!("failed to read {}", path.display())).because(error))
    };
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        (None, None) => None,
        (Some(_), None) => return Err(Failure::input("a certificate for the engine, and no key: set --remote-key")),
        (None, Some(_)) => return Err(Failure::input("a key for the engine, and no certificate: set --remote-cert")),
    };
    Ok((ca.map(read).transpose()?, client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_header_is_shown_by_nobody() {
        let args = EngineArgs { headers: vec![Header("authorization: s3cret".into())], ..EngineArgs::default() };
        assert!(!format!("{args:?}").contains("s3cret"), "{args:?}");
        let wrong = EngineArgs { url: Some("grpc://a:1".into()), headers: vec![Header("s3cret".into())], ..args };
        let error = format!("{:?}", wrong.endpoint().unwrap_err());
        assert!(error.contains("--remote-header") && !error.contains("s3cret"), "{error}");
    }
}
