//! The configuration: from arguments, environment variables, the project's files and the user's own files, in
//! this order of precedence.
//!
//! [`EngineArgs`] are the arguments of every command that talks to an engine. [`ConfigArgs`] adds those of a
//! run, and also reads the files. The project's files apply only with the user's consent, except for keys
//! that reach nothing outside.

mod args;
mod cloud;
pub(crate) mod credentials;
mod engine_args;
mod file;
mod keys;
mod layers;
mod permissions;
mod schema;
mod services;
mod show;
mod sources;
mod steps;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_places;
pub(crate) mod variables;
mod write;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

pub(crate) use args::{ConfigArgs, Sharing};
pub(crate) use cloud::{CloudConfig, Token, is_encrypted};
pub(crate) use engine_args::{EngineArgs, NamedEngine};
use hm_exec::project::{CONFIG_BYTES, ProjectDir};
pub(crate) use keys::{Sourced, ValueSource};
pub(crate) use schema::{BackendName, VmTable};
pub(crate) use show::{Row, RowState, Shown, schema};
pub(crate) use sources::{CacheTrust, Config, ConfigSources, all_permissions, collector, reuse};
pub(crate) use steps::step_args_schema;
pub(crate) use write::{set_projects, set_users};

use crate::failure::{Failure, Outcome};

/// The files that the project's `.hm/hm.toml` names, each read once: the bytes to which the user consents are
/// the bytes that are used.
#[derive(Debug, Default)]
struct ProjectFiles(RefCell<BTreeMap<PathBuf, Vec<u8>>>);

impl ProjectFiles {
    /// Returns the file's content as of the first read.
    fn read(&self, project: &ProjectDir, path: &Path) -> Outcome<Vec<u8>> {
        let path = in_hm(path);
        if let Some(bytes) = self.0.borrow().get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = project.read(&path, CONFIG_BYTES)?;
        self.0.borrow_mut().insert(path, bytes.clone());
        Ok(bytes)
    }
}

/// Resolves a path that the project's `.hm/hm.toml` names: it is relative to that file.
fn in_hm(path: &Path) -> PathBuf {
    if path.is_absolute() { path.to_owned() } else { Path::new(".hm").join(path) }
}

/// Reads a file of any kind that the user names, up to the size limit of a configuration file.
pub(crate) fn read_users(path: &Path) -> Outcome<Vec<u8>> {
    let failed =
        |error: anyhow::Error| Failure::input(format_args!("failed to read {}", path.display())).because(error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| failed(anyhow::Error::from(error)))?;
    file.take(CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(error.into()))?;
    if bytes.len() as u64 > CONFIG_BYTES {
        return Err(failed(anyhow::anyhow!("the file is larger than {} MiB", CONFIG_BYTES >> 20)));
    }
    Ok(bytes)
}
