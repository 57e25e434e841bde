//! The Python that renders pipelines: which one it is, and where it finds its packages.
//!
//! A program of the checkout is never run outside of the sandbox, and no other program is run with the
//! checkout as its working directory or in its search path. So the user's own interpreter is run from `/` to
//! report its paths. An interpreter in the checkout, such as that of a virtual environment, is not run: its
//! paths are derived from the targets of its symbolic links.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hm_exec::runner::sandbox::ConfinedCommand;

use super::{
    environment::absolute,
    kept::{Kept, Owner},
    rendering::limits,
};
use crate::failure::{Failure, Outcome};

/// The longest `pyvenv.cfg` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 64 << 10;

/// The marker before the fields of an interpreter's answer, and how many prefixes are among the fields.
const MARK: &[u8] = b"\nhm-paths\n";
const PREFIXES: usize = 4;

/// The parts of a prefix that belong to the interpreter, if the prefix contains more than an interpreter.
const OF_A_PREFIX: [&str; 4] = ["bin", "lib", "lib64", "pyvenv.cfg"];

/// The arguments that make an interpreter report about itself.
const ASKING: [&str; 5] = ["-I", "-S", "-B", "-c", include_str!("interpreter_paths.py")];

/// The variables that Python and version managers decide by, besides `PATH`.
const VARIABLES: [&str; 6] = ["HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "VIRTUAL_ENV"];
const PREFIXES_OF_VARIABLES: [&str; 5] = ["ASDF_", "MISE_", "PYENV_", "PYTHON", "XDG_"];

/// Directories that contain more than an interpreter, though one may be installed in them.
const BROAD: [&str; 8] = ["/", "/home", "/opt", "/root", "/srv", "/usr", "/usr/local", "/var"];

/// An interpreter, and the directories that a sandbox must show for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interpreter {
    /// Its absolute path.
    pub(super) program: PathBuf,
    /// Its directories and packages.
    pub(super) places: Vec<PathBuf>,
    /// The directory below which the user's own packages are, if they are used.
    pub(super) user_base: Option<PathBuf>,
}

/// A program, by who put it where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// The user installed it.
    OfTheUser(PathBuf),
    /// It is part of the checkout, so it must only run in the sandbox.
    OfTheCheckout(PathBuf),
}

/// Returns the name of the user's interpreter: `$HM_PYTHON`, or `python3`.
pub(crate) fn name() -> OsString {
    env::var_os("HM_PYTHON").filter(|name| !name.is_empty()).unwrap_or_else(|| "python3".into())
}

/// Finds a program by a path, or by a name in the absolute directories of `PATH`.
pub(crate) fn find(name: &OsStr, checkout: Option<&Path>) -> io::Result<Program> {
    let named = Path::new(name);
    let found = if named.components().count() > 1 || named.is_absolute() {
        Some(std::path::absolute(named)?)
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        absolute(&path).map(|dir| dir.join(named)).find(|path| is_executable(path))
    };
    let program = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such program in PATH"))?;
    let real = program.canonicalize()?;
    let folder = program.parent().map(Path::canonicalize).transpose()?;
    let is_inside = |path: &Path| checkout.is_some_and(|checkout| path.starts_with(checkout));
    Ok(if is_inside(&real) || folder.is_some_and(|folder| is_inside(&folder)) {
        Program::OfTheCheckout(program)
    } else {
        Program::OfTheUser(program)
    })
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// What an interpreter reports about itself.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    executable: PathBuf,
    user_base: Option<PathBuf>,
    prefixes: Vec<PathBuf>,
    places: Vec<PathBuf>,
}

impl Answer {
    /// Parses the fields after the last `hm-paths`: installed packages may print something before.
    fn parse(stdout: &[u8]) -> Option<Self> {
        let start = stdout.windows(MARK.len()).rposition(|window| window == MARK)? + MARK.len();
        let fields = stdout[start..].strip_suffix(b"\0")?;
        let mut fields = fields.split(|byte| *byte == 0).map(|field| PathBuf::from(OsStr::from_bytes(field)));
        let (executable, user_base) = (fields.next()?, fields.next()?);
        let prefixes: Vec<PathBuf> = fields.by_ref().take(PREFIXES).collect();
        let is_absolute = |path: &PathBuf| path.is_absolute();
        (prefixes.len() == PREFIXES && is_absolute(&executable)).then(|| Self {
            executable,
            user_base: Some(user_base).filter(is_absolute),
            prefixes: prefixes.into_iter().filter(is_absolute).collect(),
            places: fields.filter(is_absolute).collect(),
        })
    }

    fn interpreter(self) -> Interpreter {
        let mut places: Vec<PathBuf> = self.prefixes.iter().flat_map(|prefix| of_prefix(prefix)).collect();
        for place in self.places {
            if is_broad(&place) {
                tracing::warn!(place = %place.display(), "hiding a directory from pipelines: it contains more than packages");
            } else {
                places.push(place);
            }
        }
        let program = self.executable;
        places.push(program.clone());
        Interpreter { program, places, user_base: self.user_base }
    }
}

impl Interpreter {
    /// Finds out what `program` needs.
    pub(crate) fn of(program: Program, checkout: &Path, kept: Option<&Kept>) -> Outcome<Self> {
        match program {
            Program::OfTheUser(program) => permission(&program, checkout, kept),
            Program::OfTheCheckout(program) => {
                let places = bases(&program).iter().flat_map(|base| of_named_prefix(base)).collect();
                Ok(Self { program, places, user_base: None })
            }
        }
    }
}

impl Interpreter {
    /// Returns the version of its package `harmont`, if it has one, according to its directories.
    pub(crate) fn harmont(&self) -> Option<String> {
        let python_path = env::var_os("PYTHONPATH").unwrap_or_default();
        let dirs = self.places.iter().cloned().chain(absolute(&python_path)).collect::<Vec<_>>();
        let names = |dir: &PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
        };
        let version = |name: &String| {
            let rest = name.strip_prefix("harmont-")?;
            Some(rest.strip_suffix(".dist-info")?.to_owned())
        };
        let installed = dirs.iter().find_map(|dir| names(dir).iter().find_map(version));
        let is_package = |dir: &PathBuf| dir.ends_with("harmont") || dir.join("harmont/__init__.py").is_file();
        installed.or_else(|| dirs.iter().any(is_package).then(|| "(unknown version)".to_owned()))
    }
}

/// Runs the user's own interpreter to find out where it finds its packages.
fn permission(program: &Path, checkout: &Path, kept: Option<&Kept>) -> Outcome<Interpreter> {
    let path: Vec<PathBuf> = absolute(&env::var_os("PATH").unwrap_or_default())
        .filter(|dir| !dir.canonicalize().is_ok_and(|dir| dir.starts_with(checkout)))
        .collect();
    let path = env::join_paths(path).unwrap_or_default();
    let kept = kept.map(|kept| (kept, confined(program, &path)));
    let found = kept.as_ref().and_then(|(kept, command)| kept.find(Owner::User, command));
    if let Some(answer) = found.and_then(|found| Answer::parse(&found.stdout)) {
        return Ok(answer.interpreter());
    }
    let answer = ask(program, &path)?;
    if let Some((kept, command)) = kept {
        // Once more, only to see what the answer depends on.
        let is_answer = |stdout: &[u8]| Answer::parse(stdout).as_ref() == Some(&answer);
        if let Err(error) = kept.run(Owner::User, &command, &is_answer, &mut |_| ()) {
            tracing::info!(error = &error as &dyn std::error::Error, "the answer of an interpreter is not kept");
        }
    }
    Ok(answer.interpreter())
}

/// Returns the command that asks an interpreter in a sandbox where it can read everything and change nothing,
/// with few variables.
fn confined(program: &Path, path: &OsStr) -> ConfinedCommand {
    let is_used = |name: &OsStr| {
        let name = name.as_bytes();
        VARIABLES.iter().any(|used| name == used.as_bytes())
            || PREFIXES_OF_VARIABLES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
    };
    let mut env: Vec<(OsString, OsString)> = env::vars_os().filter(|(name, _)| is_used(name)).collect();
    env.push(("PATH".into(), path.to_owned()));
    env.sort();
    let mut argv = vec![program.as_os_str().to_owned()];
    argv.extend(ASKING.map(OsString::from));
    let top = fs::read_dir("/").into_iter().flatten().flatten().map(|entry| entry.path());
    let show = top.filter(|path| !["/dev", "/proc", "/sys"].map(Path::new).contains(&&**path)).collect();
    ConfinedCommand { argv, env, dir: "/usr/bin".into(), show, hide: Vec::new(), limits: limits(), helper: None }
}

fn ask(program: &Path, path: &OsStr) -> Outcome<Answer> {
    let shown = program.display();
    let output = Command::new(program)
        .args(ASKING)
        .env("PATH", path)
        .env_remove("PWD")
        .env_remove("OLDPWD")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::input(format_args!("failed to start `{shown}`")).because(error))?;
    match Answer::parse(&output.stdout) {
        Some(answer) if output.status.success() => Ok(answer),
        _ => {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(Failure::input(format_args!("failed to find the packages of `{shown}` ({})", output.status))
                .details(words.lines().rev().find(|line| !line.trim().is_empty()))
                .hint("set HM_PYTHON to a Python 3 that works"))
        }
    }
}

/// Returns the directories to show of a prefix.
fn of_prefix(prefix: &Path) -> Vec<PathBuf> {
    match is_broad(prefix) {
        true => OF_A_PREFIX.map(|name| prefix.join(name)).into(),
        false => vec![prefix.into()],
    }
}

/// Returns the directories to show of a prefix that the checkout names: its programs and libraries, if it is
/// a Python prefix and neither a home directory nor a directory that contains one. Parts that are symbolic
/// links to elsewhere are not shown, because the prefix may be the checkout's own.
fn of_named_prefix(prefix: &Path) -> Vec<PathBuf> {
    let Ok(real) = prefix.canonicalize() else { return Vec::new() };
    if holds_a_home(&real) || !is_python(&real) {
        return Vec::new();
    }
    let parts = OF_A_PREFIX.map(|name| prefix.join(name)).into_iter();
    parts.filter(|part| part.canonicalize().is_ok_and(|part| part.starts_with(&real))).collect()
}

/// Returns whether a directory contains more than an interpreter, such as the home directory and its parents.
pub(super) fn is_broad(dir: &Path) -> bool {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.into());
    BROAD.iter().any(|broad| dir == Path::new(broad))
        || home().is_some_and(|home| home.starts_with(&dir) || dir == home.join(".local"))
}

/// Returns whether a directory, given without symbolic links, is a home directory or contains one.
fn holds_a_home(dir: &Path) -> bool {
    let homes = Path::new("/home");
    homes.starts_with(dir)
        || dir.parent() == Some(homes)
        || Path::new("/root").starts_with(dir)
        || home().is_some_and(|home| home.starts_with(dir))
}

/// Returns the home directory of the user, without symbolic links.
fn home() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())?;
    Some(home.canonicalize().unwrap_or(home))
}

/// Returns the targets of the symbolic links of a checkout's interpreter, and the `home` of its `pyvenv.cfg`.
/// They are only candidates: the directories two levels above the programs.
fn bases(program: &Path) -> Vec<PathBuf> {
    let two_above = |path: &Path| path.parent().and_then(Path::parent).map(Path::to_path_buf);
    let mut found: Vec<PathBuf> = Vec::new();
    let mut at = program.to_path_buf();
    // The kernel follows at most 40 links.
    for _ in 0..40 {
        let Ok(target) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("/")).join(target);
        found.extend(two_above(&at));
    }
    found.extend(program.canonicalize().ok().and_then(|real| two_above(&real)));
    if let Some(own) = two_above(program) {
        let home = config_home(&own.join("pyvenv.cfg"));
        found.extend(home.filter(|home| home.is_absolute()).and_then(|home| home.parent().map(Path::to_path_buf)));
        // It is shown with the project, unless it is beside the project in the same repository.
        found.push(own);
    }
    found
}

/// Reads `home = DIR` of a `pyvenv.cfg`.
fn config_home(path: &Path) -> Option<PathBuf> {
    // The file belongs to the checkout, so links are not followed and a FIFO is not waited for.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "home").then(|| PathBuf::from(value.trim()))
    })
}

/// Returns whether `prefix` has an interpreter installed or is a virtual environment: a link in the checkout
/// must not expose any other directory of the user.
fn is_python(prefix: &Path) -> bool {
    let is_version = |name: &OsStr| name.as_encoded_bytes().starts_with(b"python3.");
    let Ok(entries) = fs::read_dir(prefix.join("lib")) else { return false };
    entries.flatten().any(|entry| is_version(&entry.file_name()) && entry.path().join("os.py").is_file())
        || prefix.join("pyvenv.cfg").is_file() && !is_broad(prefix)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn executable(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_program_of_the_checkout_is_known_by_its_place_and_by_its_links() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let checkout = top.join("checkout");
        executable(&top.join("user/python3"));
        executable(&checkout.join("bin/python3"));
        symlink(top.join("user/python3"), checkout.join("bin/linked")).unwrap();
        symlink(checkout.join("bin/python3"), top.join("user/linked")).unwrap();
        symlink(checkout.join("bin"), top.join("dir")).unwrap();
        let find = |path: &str| find(top.join(path).as_os_str(), Some(&checkout)).unwrap();
        assert_eq!(find("user/python3"), Program::OfTheUser(top.join("user/python3")));
        for path in ["checkout/bin/python3", "checkout/bin/linked", "user/linked", "dir/python3"] {
            assert_eq!(find(path), Program::OfTheCheckout(top.join(path)));
        }
    }

    #[test]
    fn an_environment_of_the_checkout_shows_the_interpreter_that_it_is_of_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let (checkout, python, other) = (top.join("checkout"), top.join("python"), top.join("secrets"));
        executable(&python.join("bin/python3.12"));
        executable(&other.join("bin/tool"));
        fs::create_dir_all(python.join("lib/python3.12")).unwrap();
        fs::write(python.join("lib/python3.12/os.py"), "").unwrap();
        fs::create_dir_all(checkout.join(".venv/bin")).unwrap();
        let program = checkout.join(".venv/bin/python3");
        let places = || {
            let found = Interpreter::of(Program::OfTheCheckout(program.clone()), &checkout, None).unwrap();
            found.places.into_iter().filter(|place| !place.starts_with(&checkout)).collect::<Vec<_>>()
        };
        symlink(other.join("bin/tool"), &program).unwrap();
        assert_eq!(places(), Vec::<PathBuf>::new());
        fs::write(checkout.join(".venv/pyvenv.cfg"), format!("home = {}\n", other.join("bin").display())).unwrap();
        assert_eq!(places(), Vec::<PathBuf>::new());
        fs::write(checkout.join(".venv/pyvenv.cfg"), format!("x = y\nhome = {}/bin\n", python.display())).unwrap();
        // Other files in the prefix are not shown.
        fs::create_dir(python.join("private")).unwrap();
        let parts = ["bin", "lib"].map(|part| python.join(part));
        assert_eq!(places(), parts);
        symlink(&other, python.join("lib64")).unwrap();
        assert_eq!(places(), parts);
        fs::remove_file(&program).unwrap();
        fs::remove_file(checkout.join(".venv/pyvenv.cfg")).unwrap();
        symlink(python.join("bin/python3.12"), &program).unwrap();
        assert_eq!(places()[..2], parts);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            checkout.join(".venv/pyvenv.cfg"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(places()[..2], parts);
    }

    #[test]
    fn a_prefix_that_the_checkout_names_is_nobodys_home() {
        let home = PathBuf::from(env::var_os("HOME").unwrap()).canonicalize().unwrap();
        for dir in ["/", "/home", "/home/bob", "/root"].map(Path::new).into_iter().chain(home.ancestors()) {
            assert!(holds_a_home(dir), "{}", dir.display());
            assert_eq!(of_named_prefix(dir), Vec::<PathBuf>::new(), "{}", dir.display());
        }
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        for prefix in ["checkout/fake", "python"] {
            executable(&top.join(prefix).join("lib/python3.12/os.py"));
        }
        fs::create_dir(top.join("secrets")).unwrap();
        symlink("../../secrets", top.join("checkout/fake/bin")).unwrap();
        assert_eq!(of_named_prefix(&top.join("checkout/fake")), [top.join("checkout/fake/lib")]);
        assert_eq!(of_named_prefix(&top.join("python")), [top.join("python/lib")]);
    }

    #[test]
    fn an_answer_is_read_whatever_is_printed_before_it() {
        let fields = "/bin/py\0\0/p\0/p\0/b\0/b\0/p/lib\0relative\0/p/z.zip\0";
        let answer = Answer::parse(format!("noise\nhm-paths\nmore\nhm-paths\n{fields}").as_bytes()).unwrap();
        assert_eq!((answer.executable, answer.user_base), (PathBuf::from("/bin/py"), None));
        assert_eq!(answer.prefixes, ["/p", "/p", "/b", "/b"].map(PathBuf::from));
        assert_eq!(answer.places, ["/p/lib", "/p/z.zip"].map(PathBuf::from));
        for cut in ["", "\nhm-paths\n", "\nhm-paths\n/bin/py\0", "\nhm-paths\npy\0\0/p\0/p\0/b\0/b\0"] {
            assert_eq!(Answer::parse(cut.as_bytes()), None);
        }
    }

    #[test]
    fn a_prefix_that_holds_more_shows_its_libraries_alone() {
        assert_eq!(of_prefix(Path::new("/usr/local"))[1], Path::new("/usr/local/lib"));
        assert!(is_broad(Path::new("/")) && is_broad(&PathBuf::from(env::var_os("HOME").unwrap())));
        assert!(!is_broad(Path::new("/opt/python")));
    }
}
