//! Which engine the cloud runner talks to, which daemon the docker runner, and what virtual machines are like: arguments over variables over `.hm/hm.toml`
//! over the user's own `hm.toml`.

use std::{
    collections::BTreeMap,
    env, fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use hm_exec::{remote::EndpointOptions, runner::MemorySize};
use serde::Deserialize;

use super::engine_args::{EngineArgs, given, read_pems};
use crate::failure::{Failure, Outcome};

/// The engine of runner `cloud`.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Remote execution (runner cloud)")]
pub(crate) struct RemoteArgs {
    #[command(flatten)]
    engine: EngineArgs,

    /// Want workers with a platform property (repeatable)
    #[arg(long = "remote-platform", value_name = "NAME=VALUE", value_parser = Property::from_str)]
    platform: Vec<Property>,

    /// How many steps may be in flight there, apart from `-j` [default: 16]
    #[arg(id = "remote-jobs", long = "remote-jobs", value_name = "N", env = "HM_REMOTE_JOBS")]
    jobs: Option<NonZeroUsize>,

    /// Share what cached steps leave with other machines, of all runners [default: both, of runner cloud alone]
    #[arg(id = "remote-cache", long = "remote-cache", value_enum, value_name = "HOW", env = "HM_REMOTE_CACHE")]
    cache: Option<Sharing>,

    /// The daemon of runner docker: unix://PATH, or tcp://HOST:PORT [default: the socket of Docker, else of Podman]
    #[arg(help_heading = "Containers (runner docker)", long = "docker-host", value_name = "URL", env = "DOCKER_HOST")]
    docker_host: Option<String>,
}

/// How the engine's cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sharing {
    /// Look steps up there
    Read,
    /// Bring there what steps leave
    Write,
    /// Both
    Both,
    /// Neither
    Off,
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
    docker: DockerTable,
    vm: VmTable,
}

/// `[docker]`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DockerTable {
    host: Option<String>,
}

/// `[vm]`: machines where no step says more, and what they are made of. Whoever writes a repository's files must not choose
/// programs to be run outside of any sandbox: what names a path is for the user's own file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VmTable {
    /// As in `2g`.
    pub(crate) memory: Option<MemorySize>,
    /// How many processors.
    pub(crate) cpus: Option<NonZeroUsize>,
    /// `qemu-system-x86_64`.
    pub(crate) qemu: Option<PathBuf>,
    /// `virtiofsd`.
    pub(crate) virtiofsd: Option<PathBuf>,
    /// `vmlinuz-VERSION`.
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel's modules.
    pub(crate) modules: Option<PathBuf>,
    /// Where machines are kept that booted.
    pub(crate) templates: Option<PathBuf>,
}

impl VmTable {
    /// The project's table over the user's.
    fn over(project: &Self, user: Self) -> Outcome<Self> {
        let paths = [&project.qemu, &project.virtiofsd, &project.kernel, &project.modules, &project.templates];
        if paths.into_iter().any(Option::is_some) {
            return Err(Failure::input("`[vm]` of a project's hm.toml says memory and cpus only")
                .hint("name programs and files in your own hm.toml, in ~/.config/hm"));
        }
        Ok(Self { memory: project.memory.or(user.memory), cpus: project.cpus.or(user.cpus), ..user })
    }
}

/// `[remote]`. Paths are relative to the file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    endpoint: Option<String>,
    instance: Option<String>,
    logs: Option<String>,
    headers: BTreeMap<String, String>,
    platform: BTreeMap<String, String>,
    jobs: Option<NonZeroUsize>,
    cache: Option<Sharing>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Whether the project alone names the engine.
    #[serde(skip)]
    engine_is_projects: bool,
    /// Whether the project alone names the log service.
    #[serde(skip)]
    logs_are_projects: bool,
}

/// What all of it comes to.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// The engine; `None` where nobody named one.
    pub(crate) endpoint: Option<EndpointOptions>,
    /// Where its log streams are, if not there.
    pub(crate) logs: Option<EndpointOptions>,
    /// Properties of its workers, by name.
    pub(crate) platform: BTreeMap<String, String>,
    /// Steps in flight.
    pub(crate) jobs: Option<NonZeroUsize>,
    /// How its cache is used, where somebody said so.
    pub(crate) cache: Option<Sharing>,
    /// The daemon that makes containers; `None` where nobody named one.
    pub(crate) docker_host: Option<String>,
    /// Virtual machines.
    pub(crate) vm: VmTable,
}

impl RemoteArgs {
    /// Reads the files, and puts all together. `hm_dir` is the project's `.hm`.
    pub(crate) fn resolve(&self, hm_dir: Option<&Path>) -> Outcome<Remote> {
        let project = match hm_dir {
            Some(dir) => read(&dir.join("hm.toml"))?,
            None => File::default(),
        };
        let user = match user_file() {
            Some(path) => read(&path)?,
            None => File::default(),
        };
        let docker_host = given(&self.docker_host).or(project.docker.host).or(user.docker.host);
        let vm = VmTable::over(&project.vm, user.vm)?;
        Ok(Remote { docker_host, vm, ..self.combine(over(project.remote, user.remote))? })
    }

    /// The arguments over what the files say.
    fn combine(&self, mut table: Table) -> Outcome<Remote> {
        let args = &self.engine;
        if let Some(url) = given(&args.url) {
            // What the files say of another engine's log streams is of no use.
            let is_other = table.endpoint.as_ref().is_some_and(|endpoint| *endpoint != url);
            table.logs = table.logs.filter(|_| !is_other);
            (table.endpoint, table.engine_is_projects) = (Some(url), false);
        }
        let cache = self.cache.or(table.cache);
        let mut remote = Remote { jobs: self.jobs.or(table.jobs), cache, ..Remote::default() };
        remote.platform = table.platform;
        remote.platform.extend(self.platform.iter().map(|Property(name, value)| (name.clone(), value.clone())));
        let Some(url) = table.endpoint.filter(|url| !url.is_empty()) else {
            return match self.cache {
                None | Some(Sharing::Off) => Ok(remote),
                Some(_) => {
                    Err(Failure::input("--remote-cache, and no engine that has one").hint("name it: --remote URL"))
                }
            };
        };
        let mut options = EndpointOptions::new(url);
        options.instance = given(&args.instance).or(table.instance).unwrap_or_default();
        let mut headers: BTreeMap<String, String> =
            table.headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        headers.extend(args.read_headers()?);
        options.headers = headers.into_iter().collect();
        let (ca, cert, key) = (table.ca.as_deref(), table.cert.as_deref(), table.key.as_deref());
        (options.ca_pem, options.client_pem) =
            read_pems(args.ca.as_deref().or(ca), args.cert.as_deref().or(cert), args.key.as_deref().or(key))?;
        // What goes to an engine that the user named goes to no other place that a project's file names.
        let is_foreign = table.logs_are_projects && !table.engine_is_projects;
        remote.logs = match (given(&args.logs), table.logs) {
            (None, Some(url)) if is_foreign => Some(EndpointOptions::new(url)),
            (Some(url), _) | (None, Some(url)) => Some(options.beside(url)),
            (None, None) => None,
        };
        remote.endpoint = Some(options);
        Ok(remote)
    }
}

/// The project's table over the user's. Where the project names another engine than the user, nothing of the user's is
/// sent there: whoever writes a repository's files could else have it sent to himself.
fn over(project: Table, user: Table) -> Table {
    if project.endpoint.is_some() && project.endpoint != user.endpoint {
        return Table { engine_is_projects: true, logs_are_projects: true, ..project };
    }
    let (mut headers, mut platform) = (user.headers, user.platform);
    headers.extend(project.headers);
    platform.extend(project.platform);
    Table {
        endpoint: project.endpoint.or(user.endpoint),
        instance: project.instance.or(user.instance),
        engine_is_projects: false,
        logs_are_projects: project.logs.is_some() && project.logs != user.logs,
        logs: project.logs.or(user.logs),
        headers,
        platform,
        jobs: project.jobs.or(user.jobs),
        cache: project.cache.or(user.cache),
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

fn read(path: &Path) -> Outcome<File> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(File::default());
        }
        Err(error) => {
            return Err(Failure::input(format_args!("failed to read {}", path.display())).because(error));
        }
    };
    // The parser's own words come with the line, which may have a token in it.
    let mut file: File = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        Failure::input(format_args!("{}, line {line}: {}", path.display(), error.message()))
    })?;
    let table = &mut file.remote;
    for named in [&mut table.ca, &mut table.cert, &mut table.key] {
        *named = named.take().map(|named| path.parent().unwrap_or(Path::new(".")).join(named));
    }
    Ok(file)
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
    fn a_log_service_that_a_project_names_gets_nothing_that_is_kept_for_the_engine_of_a_user() {
        let argument = |url: &str, logs: &str| RemoteArgs {
            engine: EngineArgs {
                url: Some(url.into()).filter(|url: &String| !url.is_empty()),
                logs: Some(logs.into()).filter(|logs: &String| !logs.is_empty()),
                headers: vec!["authorization: s3cret".parse().unwrap()],
                ..EngineArgs::default()
            },
            ..RemoteArgs::default()
        };
        let ours = || table("[remote]\nendpoint = 'grpc://ours:1'\nlogs = 'grpc://ours:2'");
        let project = |endpoint: &str| table(&format!("[remote]\n{endpoint}\nlogs = 'grpc://theirs:2'"));
        let theirs = "endpoint = 'grpc://theirs:1'";
        for (what, args, table, expected) in [
            ("the user's file", argument("", ""), ours(), Some(("grpc://ours:2", true))),
            ("the project's", argument("", ""), over(project(theirs), ours()), Some(("grpc://theirs:2", true))),
            ("beside ours", argument("", ""), over(project(""), ours()), Some(("grpc://theirs:2", false))),
            (
                "argument",
                argument("grpc://theirs:1", ""),
                over(project(theirs), ours()),
                Some(("grpc://theirs:2", false)),
            ),
            ("elsewhere", argument("grpc://other:1", ""), over(project(theirs), ours()), None),
            (
                "all arguments",
                argument("grpc://a:1", "grpc://a:2"),
                over(project(theirs), ours()),
                Some(("grpc://a:2", true)),
            ),
        ] {
            let remote = args.combine(table).unwrap();
            assert!(!remote.endpoint.unwrap().headers.is_empty(), "{what}");
            let logs = remote.logs.as_ref().map(|logs| (&*logs.url, !logs.headers.is_empty()));
            assert_eq!(logs, expected, "{what}");
        }
    }

    #[test]
    fn arguments_win_over_the_project() {
        let top = tempfile::tempdir().unwrap();
        let text = "[docker]\nhost = 'unix:///project'\n\
                    [remote]\nendpoint = 'grpc://project:1'\ninstance = 'main'\nplatform = { a = '1', b = '2' }\n";
        fs::write(top.path().join("hm.toml"), text).unwrap();
        let args = RemoteArgs {
            engine: EngineArgs {
                url: Some("grpc://argument:1".into()),
                headers: vec!["X-Token: t".parse().unwrap()],
                ..EngineArgs::default()
            },
            platform: vec!["b=3".parse().unwrap()],
            ..RemoteArgs::default()
        };
        let remote = args.resolve(Some(top.path())).unwrap();
        assert_eq!(remote.docker_host.as_deref(), Some("unix:///project"));
        let named = RemoteArgs { docker_host: Some("unix:///argument".into()), ..RemoteArgs::default() };
        assert_eq!(named.resolve(Some(top.path())).unwrap().docker_host.as_deref(), Some("unix:///argument"));
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
    }
}
