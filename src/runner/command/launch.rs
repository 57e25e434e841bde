//! What a command starts with: its program, arguments, directory and environment.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use uuid::Uuid;

use super::step_command::{Program, StepCommand};
use crate::programs;

/// The variable by which a step's processes are found if nothing else connects them.
pub(super) const MARK: &str = "HM_STEP_MARK";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest script to pass as an argument. The kernel accepts no single argument longer than 128 KiB;
/// longer scripts are passed in a file.
const MAX_ARGUMENT_BYTES: usize = 100 << 10;

/// The command to start.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) dir: PathBuf,
    /// The path of the program, then its arguments.
    pub(super) argv: Vec<OsString>,
    /// The environment, including the mark.
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) mark: String,
    /// A script that is too long for an argument.
    _script: Option<NamedTempFile>,
}

impl Launch {
    /// Prepares the command of a step: looks up its program, makes its scratch directories, and writes a
    /// script that is too long for an argument to a file.
    pub(super) fn new(command: StepCommand, step_id: Uuid) -> io::Result<Self> {
        let StepCommand { program, args, env, dir, scratch, .. } = command;
        let mark = format!("{step_id}-{}", Uuid::new_v4());
        // Makes the directory that the script is written to.
        let env = environment(env, scratch.as_deref(), &mark)?;
        let mut script = None;
        let mut argv = match program {
            Program::Shell(text) if text.len() > MAX_ARGUMENT_BYTES => {
                let file = NamedTempFile::new_in(scratch.clone().unwrap_or_else(env::temp_dir))?;
                fs::write(file.path(), &*text)?;
                let argv = vec!["/bin/sh".into(), file.path().into()];
                script = Some(file);
                argv
            }
            Program::Shell(text) if args.is_empty() => vec!["/bin/sh".into(), "-c".into(), (*text).into()],
            Program::Shell(text) => vec!["/bin/sh".into(), "-c".into(), (*text).into(), "/bin/sh".into()],
            Program::Other(name) => vec![path_of(&name, &dir)?.into()],
        };
        argv.extend(args);
        Ok(Self { dir, argv, env, mark, _script: script })
    }
}

/// Returns the path of a program that is named as a shell would. A relative path starts at `dir`.
fn path_of(name: &OsString, dir: &Path) -> io::Result<PathBuf> {
    let path = Path::new(name);
    if path.components().count() != 1 || path.has_root() {
        return Ok(dir.join(path));
    }
    let found = name.to_str().and_then(programs::find);
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("PATH has no program `{}`", name.display())))
}

/// Returns the command's environment: a few variables of the caller, and `CI`, then the command's own, then
/// the mark.
fn environment(
    own: BTreeMap<OsString, OsString>,
    scratch: Option<&Path>,
    mark: &str,
) -> io::Result<BTreeMap<OsString, OsString>> {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut env = BTreeMap::from([("PATH".into(), path), ("CI".into(), "true".into())]);
    env.extend(env::var_os("LANG").map(|lang| ("LANG".into(), lang)));
    if let Some(scratch) = scratch {
        for (variable, name) in [("HOME", "home"), ("TMPDIR", "tmp")] {
            let dir = scratch.join(name);
            fs::create_dir_all(&dir)?;
            env.insert(variable.into(), dir.into());
        }
    }
    env.extend(own);
    env.insert(MARK.into(), mark.into());
    Ok(env)
}
