//! The arguments of every command that talks to an engine, and the equivalent environment variables.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    num::ParseIntError,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::ValueEnum;
use hm_exec::remote::EndpointOptions;

use super::{
    args::Sharing,
    layers::{ConfigPlace, RemoteLayers, RemoteTable},
    variables::{Environment, REMOTE_CACHE, REMOTE_CACHE_SCOPE, REMOTE_JOBS},
};
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

/// Where an engine is, and how it knows us.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
    /// URL of the engine: grpc://HOST:PORT, or grpcs://HOST:PORT with TLS [env: HM_REMOTE]
    #[arg(long = "remote", value_name = "URL")]
    pub(super) url: Option<String>,

    /// Name of the engine's instance [env: HM_REMOTE_INSTANCE]
    #[arg(long = "remote-instance", value_name = "NAME")]
    pub(super) instance: Option<String>,

    /// URL of the service for live output, if it is not the engine itself (see `hm logstream`) [env:
    /// HM_REMOTE_LOGS]
    #[arg(id = "remote-logs", long = "remote-logs", value_name = "URL")]
    pub(super) logs: Option<String>,

    /// Send a header with every call, such as 'authorization: Bearer TOKEN' (repeatable) [env:
    /// HM_REMOTE_HEADER, one per line]. Headers from the environment are sent only to the engine that
    /// HM_REMOTE or your own hm.toml names
    #[arg(long = "remote-header", value_name = "NAME: VALUE", value_delimiter = '\n')]
    pub(super) headers: Vec<Header>,

    /// PEM file of certificate authorities to trust instead of the system's [env: HM_REMOTE_CA]
    #[arg(long = "remote-ca", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,

    /// PEM file of the client certificate [env: HM_REMOTE_CERT]
    #[arg(long = "remote-cert", value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,

    /// PEM file of the client certificate's key [env: HM_REMOTE_KEY]
    #[arg(long = "remote-key", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
}

impl EngineArgs {
    /// Returns the engine that arguments or variables name, and its log service; `None` if they name none.
    /// Reads no configuration file.
    pub(crate) fn endpoint(&self) -> Outcome<Option<NamedEngine>> {
        let layers = RemoteLayers {
            arguments: self.table()?,
            environment: environment(&Environment::of_process())?,
            ..RemoteLayers::default()
        };
        note_withheld(&layers);
        layers.named(None)
    }

    /// Returns the values of the arguments.
    pub(super) fn table(&self) -> Outcome<RemoteTable> {
        Ok(RemoteTable {
            endpoint: given(self.url.clone()),
            instance: given(self.instance.clone()),
            logs: given(self.logs.clone()),
            headers: headers("--remote-header", self.headers.iter().map(|header| &*header.0))?,
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            ..RemoteTable::default()
        })
    }
}

/// Returns the values of the environment variables.
pub(super) fn environment(variables: &Environment) -> Outcome<RemoteTable> {
    fn parsed<T>(name: &str, text: Option<String>, parse: impl Fn(&str) -> Result<T, String>) -> Outcome<Option<T>> {
        let wrong = |error| Failure::input(format_args!("{name}: {error}"));
        text.map(|text| parse(&text)).transpose().map_err(wrong)
    }
    let text = |name| variables.text(name);
    let keys = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let jobs = |text: &str| text.parse().map_err(|_: ParseIntError| "expected a number".to_owned());
    let sharing =
        |text: &str| Sharing::from_str(text, false).map_err(|_| "expected `read`, `write`, `both` or `off`".to_owned());
    Ok(RemoteTable {
        endpoint: text("HM_REMOTE")?,
        instance: text("HM_REMOTE_INSTANCE")?,
        logs: text("HM_REMOTE_LOGS")?,
        headers: headers("HM_REMOTE_HEADER", text("HM_REMOTE_HEADER")?.unwrap_or_default().lines())?,
        jobs: parsed(REMOTE_JOBS, text(REMOTE_JOBS)?, jobs)?,
        cache: parsed(REMOTE_CACHE, text(REMOTE_CACHE)?, sharing)?,
        cache_scope: text(REMOTE_CACHE_SCOPE)?,
        // Blanks are no keys, and must not take the place of those in the user's file.
        cache_keys: text("HM_REMOTE_CACHE_KEYS")?.map(keys).filter(|keys| !keys.is_empty()),
        cache_signing_key: variables.path("HM_REMOTE_CACHE_SIGNING_KEY"),
        ca: variables.path("HM_REMOTE_CA"),
        cert: variables.path("HM_REMOTE_CERT"),
        key: variables.path("HM_REMOTE_KEY"),
        ..RemoteTable::default()
    })
}

/// Reports which headers and keys are not sent.
pub(super) fn note_withheld(layers: &RemoteLayers) {
    let Some((url, _)) = layers.url() else { return };
    let place = EndpointOptions::new(url).place();
    for withheld in layers.withheld() {
        let what = match withheld {
            ConfigPlace::Environment => "HM_REMOTE_HEADER, HM_REMOTE_CA, HM_REMOTE_CERT and HM_REMOTE_KEY",
            _ => "--remote-header, --remote-ca, --remote-cert and --remote-key",
        };
        to_stderr(&format!(
            "note: {what} are not sent to {place}, which was named elsewhere: name it with --remote or HM_REMOTE"
        ));
    }
}

/// Parses headers; later ones win.
fn headers<'a>(source: &str, texts: impl Iterator<Item = &'a str>) -> Outcome<BTreeMap<String, String>> {
    let mut read = EndpointOptions::default();
    for text in texts.filter(|text| !text.trim().is_empty()) {
        read.add_header(text).map_err(|error| Failure::input(format_args!("{source}: {error}")))?;
    }
    Ok(read.headers.into_iter().collect())
}

/// An engine that was named.
#[derive(Debug)]
pub(crate) struct NamedEngine {
    pub(crate) engine: EndpointOptions,
    /// The engine of its log streams, if it is another one.
    pub(crate) logs: Option<EndpointOptions>,
}

/// `NAME: VALUE`; its `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Header(pub(super) String);

impl FromStr for Header {
    type Err = Infallible;

    /// Invalid text is reported later: an error here would repeat the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.split_once(':').map_or("(no header)", |(name, _)| name))
    }
}

/// Returns the value of an argument or a variable; an empty one counts as unset.
pub(super) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Certificates that vouch for an engine, and our own certificate with its key.
type Pems = (Option<Vec<u8>>, Option<(Vec<u8>, Vec<u8>)>);

/// The path of a PEM file, and whether the project names it.
pub(super) type PemAt<'a> = Option<(&'a Path, bool)>;

/// Reads PEM files.
pub(super) fn pems(
    ca: PemAt<'_>,
    cert: PemAt<'_>,
    key: PemAt<'_>,
    read: impl Fn((&Path, bool)) -> Outcome<Vec<u8>>,
) -> Outcome<Pems> {
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        (None, None) => None,
        (Some(_), None) => return Err(Failure::input("the client certificate needs a key: set --remote-key")),
        (None, Some(_)) => return Err(Failure::input("the client key needs a certificate: set --remote-cert")),
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
