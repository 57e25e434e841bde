//! The package `harmont` for Pythons that do not have it: its wheel, kept in the store.
//!
//! pip downloads the wheel, with the user's own configuration of indexes. Nothing is installed: Python
//! imports from the file. It is identified by its hash, so it does not matter who sent it or who put it
//! there.

use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder},
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{self, Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::{Digest, Sha256};

use super::{
    environment,
    interpreter::{self, Program},
};
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
    store,
};

const VERSION: &str = "0.0.9";
const FILE: &str = "harmont-0.0.9-py3-none-any.whl";
const SHA256: &str = "8cc5de800cd8eae1dc4ab5656cc20702bc2c7c6fb091c375865b4e7e746926d9";

/// The variable that chooses where the package comes from, and its value for "only from Python".
const SOURCE: &str = "HM_DSL";
const SYSTEM: &str = "system";

/// Runs pip. Its first argument is a directory from which nothing is imported: a package that is installed as
/// a link to its source would bring code of that source. For the same reason no `sitecustomize` is run.
const PIP: &str = "
import os, site, sys
site.execsitecustomize = site.execusercustomize = lambda: None
site.main()
checkout = os.path.join(sys.argv.pop(1), '')
sys.path = [entry for entry in sys.path if not os.path.join(os.path.realpath(entry), '').startswith(checkout)]
import runpy
runpy.run_module('pip', run_name='__main__', alter_sys=True)
";

/// Returns the wheel, if the store has it.
pub(super) fn stored() -> Option<PathBuf> {
    if is_forbidden() {
        return None;
    }
    let path = place().ok()?;
    is_valid(&path).then_some(path)
}

/// Downloads the wheel with a pip that is not part of the checkout, unless `offline` forbids it. `python` is
/// the user's own, if it is known.
pub(super) fn download(python: Option<&Path>, checkout: &Path, offline: bool) -> Outcome<PathBuf> {
    let failed = || Failure::input("failed to download the package `harmont`");
    if is_forbidden() {
        return Err(failed().because(anyhow::anyhow!("{SOURCE}={SYSTEM} forbids it")));
    }
    let system = interpreter::find("python3".as_ref(), Some(checkout)).ok();
    let system = system.and_then(|program| match program {
        Program::OfTheUser(path) => Some(path),
        Program::OfTheCheckout(_) => None,
    });
    if let Some(wheel) = stored() {
        return Ok(wheel);
    }
    if offline {
        return Err(failed().because(anyhow::anyhow!("--offline forbids it")));
    }
    let temporary = tempfile::tempdir().map_err(|error| failed().because(error))?;
    let mut refusal = anyhow::anyhow!("there is no Python with pip");
    for python in python.map(Path::to_path_buf).into_iter().chain(system) {
        match pip(&python, temporary.path(), checkout) {
            Ok(()) => {
                let bytes = fs::read(temporary.path().join(FILE)).map_err(|error| failed().because(error))?;
                return keep(&bytes).map_err(|error| failed().because(error));
            }
            Err(error) => refusal = error,
        }
    }
    Err(failed().because(refusal))
}

pub(crate) fn is_forbidden() -> bool {
    env::var_os(SOURCE).is_some_and(|value| value == SYSTEM)
}

fn place() -> Outcome<PathBuf> {
    let dir = path::absolute(store::dir()?)
        .map_err(|error| Failure::infrastructure("failed to find the store's directory").because(error))?;
    Ok(dir.join("dsl").join(FILE))
}

fn is_valid(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| sha256(&bytes) == SHA256)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs `pip download` from `/`, where nothing of the checkout is imported.
fn pip(python: &Path, to: &Path, checkout: &Path) -> anyhow::Result<()> {
    let path_list = env::var_os("PATH").unwrap_or_default();
    let dirs = environment::absolute(&path_list);
    let dirs = dirs.filter(|dir| !dir.canonicalize().is_ok_and(|dir| dir.starts_with(checkout)));
    let mut pip = Command::new(python);
    pip.args(["-I", "-S", "-B", "-c", PIP]).arg(checkout);
    pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
    // A network that does not answer must not delay an error for minutes.
    pip.args(["--retries", "1", "--timeout", "15"]);
    pip.args(["--only-binary", ":all:", "--dest"]).arg(to).arg(format!("harmont=={VERSION}"));
    pip.env("PATH", env::join_paths(dirs).unwrap_or_else(|_| OsString::new()));
    pip.env_remove("PWD").env_remove("OLDPWD").current_dir("/").stdin(Stdio::null());
    let output = pip.output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    anyhow::bail!("`{} -m pip download` failed: {}", python.display(), crate::reporter::text::clean(last.trim()))
}

/// Checks the wheel and writes it to the store, whole or not at all.
fn keep(bytes: &[u8]) -> anyhow::Result<PathBuf> {
    anyhow::ensure!(sha256(bytes) == SHA256, "the downloaded {FILE} has another hash than expected");
    let path = place().map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let dir = path.parent().unwrap_or(&path);
    // It may be the first directory of the store.
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(&path)?;
    to_stderr(&format!(
        "note: downloaded harmont {VERSION} to render pipelines ({SOURCE}={SYSTEM} uses only what Python has)"
    ));
    Ok(path)
}
