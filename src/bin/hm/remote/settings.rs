//! The settings from arguments, variables, the project's `.hm/hm.toml` and the user's own `hm.toml`: the
//! engine of the cloud runner, the daemon of the docker runner, and the configuration of virtual machines.

use std::{
    collections::BTreeMap,
    env, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
};

use hm_exec::{
    project::{CONFIG_BYTES, ProjectDir},
    remote::EndpointOptions,
    runner::MemorySize,
};
use serde::Deserialize;

use super::{
    ProjectFiles,
    engine_args::{EngineArgs, Named, environment, given, note_withheld},
    table::{Layers, Table},
};
use crate::{
    consent::Ask,
    failure::{Failure, Outcome},
    project_id::{CacheTable, Name, ProjectTables},
};

/// The engine of runner `cloud`.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Remote execution (runner cloud)")]
pub(crate) struct RemoteArgs {
    #[command(flatten)]
    engine: EngineArgs,

    /// Require a platform property of workers (repeatable)
    #[arg(long = "remote-platform", value_name = "NAME=VALUE", value_parser = Property::from_str)]
    platform: Vec<Property>,

    /// Maximum number of remote steps in flight, independent of `-j` [default: 16]
    #[arg(id = "remote-jobs", long = "remote-jobs", value_name = "N", env = "HM_REMOTE_JOBS")]
    jobs: Option<NonZeroUsize>,

    /// Share cached results of all runners through the engine [default: both, for runner cloud only]
    #[arg(id = "remote-cache", long = "remote-cache", value_enum, value_name = "HOW", env = "HM_REMOTE_CACHE")]
    cache: Option<Sharing>,

    /// URL of the container daemon: unix://PATH or tcp://HOST:PORT [default: the socket of Docker or Podman]
    #[arg(help_heading = "Containers (runner docker)", long = "docker-host", value_name = "URL", env = "DOCKER_HOST")]
    docker_host: Option<String>,
}

/// How the engine's cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sharing {
    /// Look up results
    Read,
    /// Upload results
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
            _ => Err("expected NAME=VALUE, as in `OSFamily=linux`".into()),
        }
    }
}

/// `hm.toml`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) remote: Table,
    pub(super) docker: DockerTable,
    pub(super) vm: VmTable,
    pub(super) cache: CacheTable,
    /// Ids of directories, in the user's file only.
    #[serde(rename = "project")]
    pub(super) projects: ProjectTables,
}

/// `[docker]`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DockerTable {
    pub(super) host: Option<String>,
}

/// `[vm]`: the defaults for virtual machines, and the programs and files that they are made from. A path in a
/// project's file requires the user's consent, because it is run, or read, outside of any sandbox.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VmTable {
    /// The memory size, as in `2g`.
    pub(crate) memory: Option<MemorySize>,
    /// The number of processors.
    pub(crate) cpus: Option<NonZeroUsize>,
    /// The path of `qemu-system-x86_64`.
    pub(crate) qemu: Option<PathBuf>,
    /// The path of `virtiofsd`.
    pub(crate) virtiofsd: Option<PathBuf>,
    /// The path of the kernel, `vmlinuz-VERSION`.
    pub(crate) kernel: Option<PathBuf>,
    /// The directory of the kernel's modules.
    pub(crate) modules: Option<PathBuf>,
    /// The directory in which booted machines are kept.
    pub(crate) templates: Option<PathBuf>,
}

impl VmTable {
    /// Returns the settings that are paths, by their keys.
    pub(super) fn paths(&self) -> [(&'static str, &Option<PathBuf>); 5] {
        [
            ("qemu", &self.qemu),
            ("virtiofsd", &self.virtiofsd),
            ("kernel", &self.kernel),
            ("modules", &self.modules),
            ("templates", &self.templates),
        ]
    }

    /// Merges the project's table over the user's. A path in the project itself is refused: consent is to a
    /// path, and the file there could change with every commit.
    fn over(project: Self, user: Self, root: Option<&Path>) -> Outcome<Self> {
        for (key, path) in project.paths() {
            let Some(path) = path else { continue };
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            if !path.is_absolute() || root.is_some_and(|root| real.starts_with(root)) {
                return Err(Failure::input(format_args!(
                    "`[vm] {key}` in a project's hm.toml must be an absolute path outside of the project"
                ))
                .hint("or set it in your own hm.toml, in ~/.config/hm"));
            }
        }
        Ok(Self {
            memory: project.memory.or(user.memory),
            cpus: project.cpus.or(user.cpus),
            qemu: project.qemu.or(user.qemu),
            virtiofsd: project.virtiofsd.or(user.virtiofsd),
            kernel: project.kernel.or(user.kernel),
            modules: project.modules.or(user.modules),
            templates: project.templates.or(user.templates),
        })
    }
}

/// The resolved settings.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// The engine; `None` if none is named.
    pub(crate) endpoint: Option<EndpointOptions>,
    /// The engine of its log streams, if it is another one.
    pub(crate) logs: Option<EndpointOptions>,
    /// Platform properties that its workers must have, by name.
    pub(crate) platform: BTreeMap<String, String>,
    /// The maximum number of steps in flight.
    pub(crate) jobs: Option<NonZeroUsize>,
    /// How its cache is used, if it is set.
    pub(crate) cache: Option<Sharing>,
    /// The container daemon; `None` if none is named.
    pub(crate) docker_host: Option<String>,
    /// The configuration of virtual machines.
    pub(crate) vm: VmTable,
    /// The user's ids for projects.
    pub(crate) projects: ProjectTables,
    /// The name under which results are shared with other projects.
    pub(crate) share: Option<Name>,
}

impl RemoteArgs {
    /// Reads the files. `project` is the directory that contains the project's `.hm`.
    pub(crate) fn read(&self, project: Option<&ProjectDir>) -> Outcome<Settings> {
        let file = project.map_or_else(|| Ok(File::default()), read_project_file)?;
        let user = match user_file() {
            Some(path) => read_user_file(&path)?,
            None => File::default(),
        };
        self.over(environment()?, file, user)
    }

    /// Merges the arguments with the variables and the files.
    fn over(&self, environment: Table, project: File, user: File) -> Outcome<Settings> {
        let mut arguments = self.engine.table()?;
        arguments.platform = self.platform.iter().map(|Property(name, value)| (name.clone(), value.clone())).collect();
        (arguments.jobs, arguments.cache) = (self.jobs, self.cache);
        let docker_host = given(self.docker_host.clone());
        Ok(Settings { arguments, environment, docker_host, project, user, files: Rc::default() })
    }
}

/// The path of the project's file, relative to its directory.
const PROJECT_FILE: &str = ".hm/hm.toml";

/// The settings of each place, not merged yet.
#[derive(Default)]
pub(crate) struct Settings {
    pub(super) arguments: Table,
    pub(super) environment: Table,
    /// The daemon that arguments or variables name.
    pub(super) docker_host: Option<String>,
    pub(super) project: File,
    pub(super) user: File,
    files: Rc<ProjectFiles>,
}

impl Settings {
    /// Returns what the project requests beyond the sandbox, without requests that have no effect because the
    /// user overrides them.
    pub(crate) fn asks(&self, project: Option<&ProjectDir>) -> Outcome<Vec<Ask>> {
        super::asks::of(self, project, false)
    }

    /// Removes everything that requires consent from the project's settings.
    pub(crate) fn ignore_asks(&mut self) {
        let File { remote, vm, .. } = std::mem::take(&mut self.project);
        // Less sharing needs no consent.
        let cache = remote.cache.filter(|cache| *cache == Sharing::Off);
        self.project.remote = Table { jobs: remote.jobs, cache, ..Table::default() };
        self.project.vm = VmTable { memory: vm.memory, cpus: vm.cpus, ..VmTable::default() };
    }

    pub(super) fn layers(&self) -> Layers {
        let (arguments, environment) = (self.arguments.clone(), self.environment.clone());
        Layers {
            arguments,
            environment,
            project: self.project.remote.clone(),
            user: self.user.remote.clone(),
            files: Rc::clone(&self.files),
        }
    }

    /// Resolves the settings. The user must have consented to the project's requests.
    pub(crate) fn resolve(self, project: Option<&ProjectDir>) -> Outcome<Remote> {
        let layers = self.layers();
        let Self { arguments, docker_host, project: own, user, .. } = self;
        if !own.projects.is_empty() {
            return Err(Failure::input("`[project]` is not allowed in a project's hm.toml")
                .hint("move it to your own hm.toml, in ~/.config/hm"));
        }
        if user.cache.share.is_some() {
            return Err(Failure::input(
                "`[cache] share` is not allowed in your own hm.toml: it would apply to all projects",
            )
            .hint("give directories the same id instead: `[project.\"/path\"] id = \"NAME\"`"));
        }
        let named = layers.named(project)?;
        if named.is_none() && arguments.cache.is_some_and(|cache| cache != Sharing::Off) {
            return Err(Failure::input("--remote-cache needs an engine").hint("pass `--remote URL`"));
        }
        note_withheld(&layers);
        let (endpoint, logs) = named.map_or((None, None), |Named { engine, logs }| (Some(engine), logs));
        Ok(Remote {
            endpoint,
            logs,
            platform: layers.platform(),
            jobs: layers.first(|table| table.jobs.as_ref()).copied(),
            cache: layers.first(|table| table.cache.as_ref()).copied(),
            docker_host: docker_host.or(own.docker.host).or(user.docker.host),
            vm: VmTable::over(own.vm, user.vm, project.map(ProjectDir::path))?,
            projects: user.projects,
            share: own.cache.share,
        })
    }
}

fn user_file() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(config.join("hm/hm.toml"))
}

/// Returns everything that a project's `hm.toml` requests, including what the user's settings override.
pub(crate) fn all_asks(project: &ProjectDir) -> Outcome<Vec<Ask>> {
    let settings = Settings { project: read_project_file(project)?, ..Settings::default() };
    super::asks::of(&settings, Some(project), true)
}

fn read_project_file(project: &ProjectDir) -> Outcome<File> {
    match project.read_text_if_any(PROJECT_FILE, CONFIG_BYTES)? {
        Some(text) => parse(&project.path().join(PROJECT_FILE), &text),
        None => Ok(File::default()),
    }
}

/// Reads the user's own file. Its paths are relative to it.
fn read_user_file(path: &Path) -> Outcome<File> {
    match path.metadata() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(File::default());
        }
        _ => {}
    }
    let bytes = super::read_users(path)?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::input(format_args!("{} is not UTF-8", path.display())))?;
    let mut file = parse(path, &text)?;
    let table = &mut file.remote;
    for named in [&mut table.ca, &mut table.cert, &mut table.key] {
        *named = named.take().map(|named| path.parent().unwrap_or(Path::new(".")).join(named));
    }
    Ok(file)
}

fn parse(path: &Path, text: &str) -> Outcome<File> {
    // The parser's full message quotes the line, which may contain a token.
    let mut file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        Failure::input(format_args!("{}, line {line}: {}", path.display(), error.message()))
    })?;
    // Empty values count as unset.
    let table = &mut file.remote;
    for text in [&mut table.endpoint, &mut table.instance, &mut table.logs, &mut file.docker.host] {
        *text = given(text.take());
    }
    let names = table.headers.keys().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>();
    table.headers = names.into_iter().zip(std::mem::take(&mut table.headers).into_values()).collect();
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::consent::Ask;

    const HOSTILE: &str = "[cache]\nshare = 'all'\n[docker]\nhost = 'tcp://evil:2375'\n\
        [vm]\nmemory = '1g'\nqemu = '/evil/qemu'\n\
        [remote]\nendpoint = 'grpc://evil:1'\nlogs = 'grpc://evil:2'\ninstance = 'evil'\njobs = 3\ncache = 'both'\n\
        headers = { X-Key = 's3cret' }\nplatform = { a = '1' }\nca = 'ca.pem'\n";

    fn settings(args: &RemoteArgs, project: &str, user: &str) -> Settings {
        let file = |text| parse(Path::new("hm.toml"), text).unwrap();
        args.over(Table::default(), file(project), file(user)).unwrap()
    }

    fn keys(settings: &Settings) -> Vec<String> {
        settings.asks(None).unwrap().iter().map(Ask::name).collect()
    }

    #[test]
    fn all_that_reaches_outside_asks() {
        let asked = settings(&RemoteArgs::default(), HOSTILE, "");
        let expected = [
            "[cache] share",
            "[docker] host",
            "[remote] ca",
            "[remote] cache",
            "[remote] endpoint",
            "[remote] headers.x-key",
            "[remote] instance",
            "[remote] logs",
            "[remote] platform.a",
            "[vm] qemu",
        ];
        let mut found = keys(&asked);
        found.sort();
        assert_eq!(found, expected);
        let lines: Vec<String> = asked.asks(None).unwrap().iter().map(Ask::line).collect();
        assert!(lines.iter().any(|line| line.contains("grpc://evil:1")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("s3cret")), "{lines:?}");
        let harmless = "[remote]\njobs = 2\ncache = 'off'\n[vm]\nmemory = '1g'\ncpus = 2\n";
        assert_eq!(keys(&settings(&RemoteArgs::default(), harmless, "[remote]\nendpoint = 'grpc://ours:1'")), [""; 0]);
    }

    #[test]
    fn what_the_user_says_as_well_asks_for_nothing() {
        let same = settings(
            &RemoteArgs::default(),
            "[docker]\nhost = 'unix:///ours'\n[remote]\nendpoint = 'grpc://ours:1'\nlogs = 'grpc://ours:2'\n\
             platform = { a = '1' }\n",
            "[docker]\nhost = 'unix:///ours'\n[remote]\nendpoint = 'grpc://ours:1'\nlogs = 'grpc://ours:2'\n\
             platform = { a = '1' }\n",
        );
        assert_eq!(keys(&same), [""; 0]);
        let args = RemoteArgs {
            engine: EngineArgs {
                url: Some("grpc://argument:1".into()),
                logs: Some("grpc://argument:2".into()),
                instance: Some("argument".into()),
                ..EngineArgs::default()
            },
            cache: Some(Sharing::Read),
            docker_host: Some("unix:///argument".into()),
            ..RemoteArgs::default()
        };
        // Headers and certificates are for the engine that the project names, and go nowhere else.
        assert_eq!(keys(&settings(&args, HOSTILE, "")), ["[remote] platform.a", "[cache] share", "[vm] qemu"]);
    }

    #[test]
    fn what_is_ignored_leaves_what_reaches_nothing() {
        let mut ignored = settings(&RemoteArgs::default(), HOSTILE, "[docker]\nhost = 'unix:///ours'");
        ignored.ignore_asks();
        assert_eq!(keys(&ignored), [""; 0]);
        let remote = ignored.resolve(None).unwrap();
        assert!(remote.endpoint.is_none() && remote.logs.is_none() && remote.platform.is_empty());
        assert_eq!((remote.docker_host.as_deref(), remote.jobs), (Some("unix:///ours"), NonZeroUsize::new(3)));
        assert!(remote.vm.memory.is_some() && remote.vm.qemu.is_none());
    }

    #[test]
    fn arguments_win_over_the_project() {
        let text = "[docker]\nhost = 'unix:///project'\n\
                    [remote]\nendpoint = 'grpc://project:1'\ninstance = 'main'\nplatform = { a = '1', b = '2' }\n";
        let args = RemoteArgs {
            engine: EngineArgs {
                url: Some("grpc://argument:1".into()),
                headers: vec!["X-Token: t".parse().unwrap()],
                ..EngineArgs::default()
            },
            platform: vec!["b=3".parse().unwrap()],
            ..RemoteArgs::default()
        };
        let remote = settings(&args, text, "").resolve(None).unwrap();
        assert_eq!(remote.docker_host.as_deref(), Some("unix:///project"));
        let named = RemoteArgs { docker_host: Some("unix:///argument".into()), ..RemoteArgs::default() };
        let named = settings(&named, text, "").resolve(None).unwrap();
        assert_eq!(named.docker_host.as_deref(), Some("unix:///argument"));
        let endpoint = remote.endpoint.unwrap();
        assert_eq!((&*endpoint.url, &*endpoint.instance), ("grpc://argument:1", "main"));
        assert_eq!(endpoint.headers, [("x-token".to_owned(), "t".to_owned())]);
        assert_eq!(remote.platform.into_values().collect::<Vec<_>>(), ["1", "3"]);
    }

    #[test]
    fn a_program_in_the_project_is_run_with_no_consent() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().canonicalize().unwrap();
        fs::write(root.join("qemu"), "").unwrap();
        let project = ProjectDir::open(&root).unwrap();
        for path in ["qemu".to_owned(), root.join("qemu").display().to_string()] {
            let text = format!("[vm]\nqemu = '{path}'\n");
            let error = settings(&RemoteArgs::default(), &text, "").resolve(Some(&project)).unwrap_err();
            assert!(error.to_string().contains("`[vm] qemu`"), "{error}");
        }
    }

    #[test]
    fn what_the_user_consents_to_is_what_is_used() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().canonicalize().unwrap();
        fs::create_dir(root.join(".hm")).unwrap();
        let project = ProjectDir::open(&root).unwrap();
        let write = |text: &str| {
            for name in ["ca", "cert", "key"] {
                fs::write(root.join(".hm").join(name), text).unwrap();
            }
        };
        write("first");
        let text = "[remote]\nendpoint = 'grpcs://theirs:1'\nca = 'ca'\ncert = 'cert'\nkey = 'key'\n";
        let settings = settings(&RemoteArgs::default(), text, "");
        let digests = |asks: Vec<Ask>| asks.iter().map(Ask::digest).collect::<Vec<_>>();
        let asked = digests(settings.asks(Some(&project)).unwrap());
        write("second");
        assert_eq!(digests(settings.asks(Some(&project)).unwrap()), asked);
        let endpoint = settings.resolve(Some(&project)).unwrap().endpoint.unwrap();
        assert_eq!(endpoint.ca_pem.as_deref(), Some(&b"first"[..]));
        assert_eq!(endpoint.client_pem, Some((b"first".to_vec(), b"first".to_vec())));
    }

    #[test]
    fn a_mistake_in_a_file_is_told_with_its_line_and_without_it() {
        let text = "[remote]\nendpoint = 'grpc://a:1'\nheaders = { authorization = Bearer s3cret }\n";
        let error = format!("{:?}", parse(Path::new("hm.toml"), text).err().unwrap());
        assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
    }
}
