//! What a step's shell starts with: its command, workspace and environment.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::runner::Prepared;
use crate::runner::ExecutorInput;

/// The variable by which a step's processes are found if nothing else connects them.
pub(super) const MARK: &str = "HM_STEP_MARK";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest command to pass as an argument. The kernel accepts no single argument longer than 128 KiB;
/// longer commands are passed in a file.
const MAX_ARGUMENT_BYTES: usize = 100 << 10;

/// The shell to start.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) workspace: PathBuf,
    /// The arguments of `/bin/sh`: `-c COMMAND`, or a file.
    pub(super) args: Vec<OsString>,
    /// The environment, including the mark.
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) mark: String,
}

impl Launch {
    /// Describes the shell of a step. Writes a command that is too long for an argument to a file.
    pub(super) fn new(input: &ExecutorInput, prepared: &Prepared) -> io::Result<Self> {
        let private = prepared.private();
        let command = &*input.step.cmd;
        let args = if command.len() <= MAX_ARGUMENT_BYTES {
            vec!["-c".into(), command.into()]
        } else {
            let file = private.join("command");
            std::fs::write(&file, command)?;
            vec![file.into()]
        };
        let mark = format!("{}-{}", input.step_id, prepared.store.instance().new_id());
        let env = environment(input, private, &mark);
        Ok(Self { workspace: prepared.workspace.clone(), args, env, mark })
    }
}

/// Returns the command's environment: a few variables of the caller, then the step's own, then the mark.
fn environment(input: &ExecutorInput, private: &Path, mark: &str) -> BTreeMap<OsString, OsString> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let callers = [
        ("PATH".into(), path),
        ("HOME".into(), private.join("home").into()),
        ("TMPDIR".into(), private.join("tmp").into()),
    ];
    let mut env = BTreeMap::from(callers);
    env.extend(std::env::var_os("LANG").map(|lang| ("LANG".into(), lang)));
    env.extend(input.env.iter().map(|(name, value)| (name.into(), value.into())));
    env.insert(MARK.into(), mark.into());
    env
}
