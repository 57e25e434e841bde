//! The configuration files: the project's `.hm/hm.toml` and the user's own `hm.toml`.

use std::{
    env, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use hm_exec::{
    project::{CONFIG_BYTES, ProjectDir},
    runner::MemorySize,
    source::SourceTimes,
};
use serde::Deserialize;

use super::{engine_args::given, layers::RemoteTable};
use crate::{
    failure::{Failure, Outcome},
    project_id::{CacheTable, ProjectTables},
};

/// The path of the project's file, relative to its directory.
const PROJECT_FILE: &str = ".hm/hm.toml";

/// `hm.toml`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    pub(super) remote: RemoteTable,
    pub(super) docker: DockerTable,
    pub(super) vm: VmTable,
    pub(super) cache: CacheTable,
    pub(super) source: SourceTable,
    /// Ids of directories, in the user's file only.
    #[serde(rename = "project")]
    pub(super) projects: ProjectTables,
}

/// `[source]`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SourceTable {
    /// Which modification times of source files steps see.
    pub(super) times: Option<SourceTimes>,
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
    pub(super) fn over(project: Self, user: Self, root: Option<&Path>) -> Outcome<Self> {
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

pub(super) fn user_path() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(config.join("hm/hm.toml"))
}

pub(super) fn read_project(project: &ProjectDir) -> Outcome<ConfigFile> {
    match project.read_text_if_any(PROJECT_FILE, CONFIG_BYTES)? {
        Some(text) => parse(&project.path().join(PROJECT_FILE), &text),
        None => Ok(ConfigFile::default()),
    }
}

/// Reads the user's own file. Its paths are relative to it.
pub(super) fn read_user(path: &Path) -> Outcome<ConfigFile> {
    match path.metadata() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(ConfigFile::default());
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

pub(super) fn parse(path: &Path, text: &str) -> Outcome<ConfigFile> {
    // The parser's full message quotes the line, which may contain a token.
    let mut file: ConfigFile = toml::from_str(text).map_err(|error| {
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
