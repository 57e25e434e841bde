//! Which engine the cloud runner talks to: arguments over variables over `.hm/hm.toml` over the user's own `hm.toml`.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use hm_exec::remote::EndpointOptions;
use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// The engine of runner `cloud`.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Remote execution (runner cloud)")]
pub(crate) struct RemoteArgs {
    /// The engine: grpc://HOST:PORT, or grpcs://HOST:PORT with TLS
    #[arg(long = "remote", value_name = "URL", env = "HM_REMOTE")]
    url: Option<String>,

    /// Which of the engine's instances
    #[arg(long = "remote-instance", value_name = "NAME", env = "HM_REMOTE_INSTANCE")]
    instance: Option<String>,

    /// Send a header with every call (repeatable; in the variable, one a line)
    #[arg(
        long = "remote-header",
        value_name = "NAME: VALUE",
        env = "HM_REMOTE_HEADER",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    headers: Vec<Header>,

    /// Want workers with a platform property (repeatable)
    #[arg(long = "remote-platform", value_name = "NAME=VALUE", value_parser = Property::from_str)]
    platform: Vec<Property>,

    /// How many steps may be in flight there, apart from `-j` [default: 16]
    #[arg(id = "remote-jobs", long = "remote-jobs", value_name = "N", env = "HM_REMOTE_JOBS")]
    jobs: Option<NonZeroUsize>,

    /// Certificates that vouch for the engine, in PEM, instead of the system's
    #[arg(long = "remote-ca", value_name = "FILE", env = "HM_REMOTE_CA")]
    ca: Option<PathBuf>,

    /// Our certificate, in PEM
    #[arg(long = "remote-cert", value_name = "FILE", env = "HM_REMOTE_CERT")]
    cert: Option<PathBuf>,

    /// Its key, in PEM
    #[arg(long = "remote-key", value_name = "FILE", env = "HM_REMOTE_KEY")]
    key: Option<PathBuf>,
}

/// `NAME: VALUE`, of which nobody is shown the value.
#[derive(Clone, PartialEq, Eq)]
struct Header(String);

impl FromStr for Header {
    type Err = std::convert::Infallible;

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

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Property(String, String);

impl FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self(name.into(), value.into())),
            _ => Err("write NAME=VALUE, as in `OSFamily=linux`".into()),
        }
    }
}

/// `hm.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    remote: Table,
}

/// `[remote]`. Paths are relative to the file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    endpoint: Option<String>,
    instance: Option<String>,
    headers: BTreeMap<String, String>,
    platform: BTreeMap<String, String>,
    jobs: Option<NonZeroUsize>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// What all of it comes to.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// The engine; `None` where nobody named one.
    pub(crate) endpoint: Option<EndpointOptions>,
    /// Properties of its workers, by name.
    pub(crate) platform: BTreeMap<String, String>,
    /// Steps in flight.
    pub(crate) jobs: Option<NonZeroUsize>,
}

impl RemoteArgs {
    /// Reads the files, and puts all together. `hm_dir` is the project's `.hm`.
    pub(crate) fn resolve(&self, hm_dir: Option<&Path>) -> Outcome<Remote> {
        let project = match hm_dir {
            Some(dir) => read(&dir.join("hm.toml"))?,
            None => Table::default(),
        };
        let user = match user_file() {
            Some(path) => read(&path)?,
            None => Table::default(),
        };
        let mut table = over(project, user);
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(url) = given(&self.url) {
            table = Table { endpoint: Some(url), ..table };
        }
        let mut remote = Remote { jobs: self.jobs.or(table.jobs), ..Remote::default() };
        remote.platform = table.platform;
        remote.platform.extend(self.platform.iter().map(|Property(name, value)| (name.clone(), value.clone())));
        let Some(url) = table.endpoint.filter(|url| !url.is_empty()) else { return Ok(remote) };
        let mut options = EndpointOptions::new(url);
        options.instance = given(&self.instance).or(table.instance).unwrap_or_default();
        let mut headers: BTreeMap<String, String> =
            table.headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        for Header(text) in self.headers.iter().filter(|header| !header.0.trim().is_empty()) {
            let mut one = EndpointOptions::default();
            one.add_header(text).map_err(|error| Failure::input(format_args!("--remote-header: {error}")))?;
            headers.extend(one.headers);
        }
        options.headers = headers.into_iter().collect();
        let (ca, cert, key) =
            (self.ca.clone().or(table.ca), self.cert.clone().or(table.cert), self.key.clone().or(table.key));
        options.ca_pem = ca.map(|path| pem(&path)).transpose()?;
        options.client_pem = match (cert, key) {
            (Some(cert), Some(key)) => Some((pem(&cert)?, pem(&key)?)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(Failure::input("a certificate for the engine, and no key: set --remote-key"));
            }
            (None, Some(_)) => {
                return Err(Failure::input("a key for the engine, and no certificate: set --remote-cert"));
            }
        };
        remote.endpoint = Some(options);
        Ok(remote)
    }
}

/// The project's table over the user's. Where the project names another engine than the user, nothing of the user's is
/// sent there: whoever writes a repository's files could else have it sent to himself.
fn over(project: Table, user: Table) -> Table {
    if project.endpoint.is_some() && project.endpoint != user.endpoint {
        return project;
    }
    let (mut headers, mut platform) = (user.headers, user.platform);
    headers.extend(project.headers);
    platform.extend(project.platform);
    Table {
        endpoint: project.endpoint.or(user.endpoint),
        instance: project.instance.or(user.instance),
        headers,
        platform,
        jobs: project.jobs.or(user.jobs),
        ca: project.ca.or(user.ca),
        cert: project.cert.or(user.cert),
        key: project.key.or(user.key),
    }
}

fn user_file() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(config.join("hm/hm.toml"))
}

fn read(path: &Path) -> Outcome<Table> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Table::default());
        }
        Err(error) => {
            return Err(Failure::input(format_args!("failed to read {}", path.display())).because(error));
        }
    };
    // The parser's own words come with the line, which may have a token in it.
    let file: File = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        Failure::input(format_args!("{}, line {line}: {}", path.display(), error.message()))
    })?;
    let mut table = file.remote;
    let beside = |file: Option<PathBuf>| file.map(|file| path.parent().unwrap_or(Path::new(".")).join(file));
    (table.ca, table.cert, table.key) = (beside(table.ca), beside(table.cert), beside(table.key));
    Ok(table)
}

fn pem(path: &Path) -> Outcome<Vec<u8>> {
    fs::read(path).map_err(|error| Failure::input(format_args!("failed to read {}", path.display())).because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str::<File>(text).unwrap().remote
    }

    #[test]
    fn what_the_user_keeps_for_one_engine_is_sent_to_no_other() {
        let user = table(
            "[remote]\nendpoint = 'grpcs://ours:1'\nheaders = { authorization = 'Bearer s3cret' }\nkey = 'key.pem'",
        );
        let theirs = over(table("[remote]\nendpoint = 'grpcs://theirs:1'"), user.clone());
        assert!(theirs.headers.is_empty() && theirs.key.is_none());
        let ours = over(table("[remote]\nendpoint = 'grpcs://ours:1'\njobs = 3"), user.clone());
        assert!(ours.headers.contains_key("authorization") && ours.jobs == NonZeroUsize::new(3));
        assert!(over(table("[remote]\njobs = 3"), user).headers.contains_key("authorization"));
    }

    #[test]
    fn arguments_win_over_the_project() {
        let top = tempfile::tempdir().unwrap();
        let text = "[remote]\nendpoint = 'grpc://project:1'\ninstance = 'main'\nplatform = { a = '1', b = '2' }\n";
        fs::write(top.path().join("hm.toml"), text).unwrap();
        let args = RemoteArgs {
            url: Some("grpc://argument:1".into()),
            platform: vec!["b=3".parse().unwrap()],
            headers: vec![Header("X-Token: t".into())],
            ..RemoteArgs::default()
        };
        let remote = args.resolve(Some(top.path())).unwrap();
        let endpoint = remote.endpoint.unwrap();
        assert_eq!((&*endpoint.url, &*endpoint.instance), ("grpc://argument:1", "main"));
        assert_eq!(endpoint.headers, [("x-token".to_owned(), "t".to_owned())]);
        assert_eq!(remote.platform.into_values().collect::<Vec<_>>(), ["1", "3"]);
    }

    #[test]
    fn a_mistake_in_a_file_is_told_with_its_line_and_without_it() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("hm.toml");
        fs::write(&path, "[remote]\nendpoint = 'grpc://a:1'\nheaders = { authorization = Bearer s3cret }\n").unwrap();
        let error = format!("{:?}", read(&path).err().unwrap());
        assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
        assert!(!format!("{:?}", Header("authorization: s3cret".into())).contains("s3cret"));
    }
}
