//! Builds a static `hm-step` and makes it part of this crate (feature `embed`), so that an installed `hm` can
//! run steps on other machines and in virtual machines, and nothing has to be built or found besides.
//!
//! `hm-step` is a program of this package. It is built by a second cargo, in a target directory of its own
//! below `OUT_DIR`: cargo holds a lock on the directory that it builds in, and this script runs meanwhile.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "cargo reads the former, and users read the latter")]

#[path = "elf.rs"]
mod elf;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The environment variable that says what to embed: the path of an executable, `build`, or `none`. If it is
/// not set, builds with optimization build one. Others do not, because a developer's builds are many.
const VARIABLE: &str = "HM_EMBED_STEP";

/// The profile `step` of the workspace. A package from a registry has no profiles of its own.
const PROFILE: [&str; 7] = [
    "inherits=\"release\"",
    "codegen-units=1",
    "debug=false",
    "lto=true",
    "opt-level=3",
    "panic=\"abort\"",
    "strip=true",
];

/// What `hm-step` is built from. The whole directory would include the tests.
const SOURCES: [&str; 13] = [
    "Cargo.toml",
    "awake.rs",
    "bin",
    "build.rs",
    "built_in.rs",
    "elf.rs",
    "format.rs",
    "guest",
    "jail",
    "lib.rs",
    "locate.rs",
    "streams.rs",
    "tree",
];

/// Variables that are meant for the outer build, and would change the bytes, the place or the compiler.
const FOREIGN: [&str; 9] = [
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CFLAGS",
    "CLIPPY_ARGS",
    "CPPFLAGS",
    "CXXFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    if env::var_os("CARGO_FEATURE_EMBED").is_none() {
        return ExitCode::SUCCESS;
    }
    let wanted = env::var_os(VARIABLE).filter(|wanted| !wanted.is_empty());
    // What was asked for is there, or the build fails. What is built by default may be missing.
    let (is_asked_for, embedded) = match wanted.as_deref().map(|wanted| (wanted, wanted.to_str())) {
        Some((_, Some("none"))) => (false, Embedded::Not("it was built with HM_EMBED_STEP=none".to_owned())),
        Some((_, Some("build"))) => (true, build()),
        // This script does not run where the variable was set.
        Some((path, _)) if !Path::new(path).is_absolute() => {
            (true, Embedded::Failed(format!("{} is not an absolute path", Path::new(path).display())))
        }
        Some((path, _)) => {
            println!("cargo::rerun-if-changed={}", Path::new(path).display());
            (true, Embedded::File(path.into()))
        }
        None if env::var_os("DOCS_RS").is_some() => (false, Embedded::Not("it was built for its documentation".into())),
        None if env::var_os("PROFILE").is_some_and(|profile| profile == "release") => (false, build()),
        None => (false, Embedded::Not("it was built without optimization".to_owned())),
    };
    let (is_fatal, why) = match embedded {
        Embedded::File(path) => match embed(&path) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (is_asked_for, error),
        },
        Embedded::Failed(why) => (is_asked_for, why),
        Embedded::Not(why) => (false, why),
    };
    if is_fatal {
        eprintln!("error: {VARIABLE}: {why}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = write_built_in(&format!("Err({:?})", format!("this hm has none, because {why}"))) {
        eprintln!("error: failed to write to OUT_DIR: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What becomes part of the crate.
enum Embedded {
    File(PathBuf),
    Failed(String),
    Not(String),
}

/// Writes the source file that has the executable, if that is a static one.
fn embed(path: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to read {}: {error}", path.display());
    match File::open(path).and_then(elf::is_static).map_err(failed)? {
        Some(true) => {}
        Some(false) => return Err(format!("{} is dynamically linked", path.display())),
        None => return Err(format!("{} is not a 64-bit ELF file", path.display())),
    }
    // A copy, because the file may change while the crate is compiled.
    // Without the mode: a read-only copy could not be replaced by the next one.
    fs::read(path).and_then(|bytes| fs::write(out_dir().join("hm-step"), bytes)).map_err(failed)?;
    write_built_in("Ok(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/hm-step\")))").map_err(failed)
}

fn write_built_in(value: &str) -> io::Result<()> {
    fs::write(out_dir().join("built_in.rs"), format!("pub(crate) static BUILT_IN: Result<&[u8], &str> = {value};\n"))
}

/// Builds `hm-step`. Each attempt writes to `OUT_DIR` only, so the package may lie in a read-only directory.
fn build() -> Embedded {
    let package = variable("CARGO_MANIFEST_DIR");
    let root = workspace(&package);
    for name in SOURCES {
        println!("cargo::rerun-if-changed={name}");
    }
    if root.join("Cargo.lock").exists() {
        println!("cargo::rerun-if-changed={}", root.join("Cargo.lock").display());
    }
    let mut failure = String::new();
    // First with what cargo has downloaded for the outer build, which may be offline.
    let offline: &[&str] = &["--locked", "--offline"];
    let mut attempts: Vec<(PathBuf, &[&str])> = vec![(package.clone(), offline)];
    if root == package {
        match without_lock(&package) {
            Ok(copy) => attempts.push((copy, &["--offline"])),
            Err(error) => failure = format!("failed to copy {}: {error}", package.display()),
        }
    }
    let is_offline = env::var("CARGO_NET_OFFLINE").is_ok_and(|value| value == "true");
    if !is_offline {
        attempts.push((package, &["--locked"]));
    }
    for (dir, arguments) in attempts {
        match cargo(&dir, &root, arguments) {
            Ok(built) => return Embedded::File(built),
            Err(Failure::Compile(why)) => {
                failure = why;
                break;
            }
            Err(Failure::Resolve(why)) => failure = why,
        }
    }
    println!(
        "cargo::warning=hm gets no hm-step, which the runners cloud and vm need: {failure}. To try again, set {VARIABLE}=build"
    );
    Embedded::Failed(format!("building it failed: {failure}"))
}

/// Returns the directory with the lock file that belongs to the package.
fn workspace(package: &Path) -> PathBuf {
    let inherits = fs::read_to_string(package.join("Cargo.toml")).is_ok_and(|text| text.contains(".workspace = true"));
    let has_lock = |dir: &&Path| dir.join("Cargo.lock").exists();
    let root = package.ancestors().find(has_lock).filter(|_| inherits);
    root.unwrap_or(package).to_owned()
}

/// Copies the package of a registry without its lock file and without what only its tests need. Cargo then
/// chooses the versions that it has, which are those of the outer build.
fn without_lock(package: &Path) -> io::Result<PathBuf> {
    let copy = out_dir().join("package");
    match fs::remove_dir_all(&copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => copy_dir(package, &copy)?,
    }
    let (mut manifest, mut is_kept) = (String::new(), true);
    for line in fs::read_to_string(package.join("Cargo.toml"))?.lines() {
        if line.starts_with('[') {
            is_kept = !line.starts_with("[dev-dependencies") && !line.starts_with("[[test]]");
        }
        if is_kept {
            manifest.push_str(line);
            manifest.push('\n');
        }
    }
    // So that cargo does not take it for a forgotten member of a workspace above.
    manifest.push_str("\n[workspace]\n");
    fs::write(copy.join("Cargo.toml"), manifest)?;
    Ok(copy)
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "target" {
                copy_dir(&entry.path(), &to.join(name))?;
            }
        } else if name != "Cargo.lock" && name != "Cargo.toml" {
            // The content without the mode: the original may be read-only.
            fs::write(to.join(name), fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// Why cargo built nothing.
enum Failure {
    /// A package is missing. Another attempt may find it.
    Resolve(String),
    /// The compiler or the linker failed.
    Compile(String),
}

/// Runs cargo. Returns the path of the executable.
fn cargo(package: &Path, root: &Path, arguments: &[&str]) -> Result<PathBuf, Failure> {
    let target = env::var("TARGET").unwrap_or_default();
    let build_dir = out_dir().join("build");
    let mut command = Command::new(variable("CARGO"));
    command.args(["build", "--profile", "step", "--bin", "hm-step", "--target", &target]).args(arguments);
    command.arg("--manifest-path").arg(package.join("Cargo.toml")).arg("--target-dir").arg(&build_dir);
    for value in PROFILE {
        command.args(["--config", &format!("profile.step.{value}")]);
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_of_package = ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "CARGO_PROFILE_", "DEP_"];
        if FOREIGN.contains(&&*text) || is_of_package.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", rustflags(root)).env("CARGO_TERM_COLOR", "never");
    // A user's configuration may choose a directory for all builds, which the outer cargo holds locked.
    command.env("CARGO_BUILD_BUILD_DIR", &build_dir);
    // The configuration of the user's workspace, such as the place of vendored packages, is found from here.
    command.current_dir(if root == package && !arguments.contains(&"--locked") { out_dir() } else { package.into() });
    let output = command.output().map_err(|error| Failure::Compile(format!("failed to run cargo: {error}")))?;
    if output.status.success() {
        return Ok(build_dir.join(target).join("step/hm-step"));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    eprintln!("{errors}");
    let first = errors.lines().find(|line| line.starts_with("error")).unwrap_or("cargo failed without an error");
    if errors.contains("Compiling ") {
        let no_libc = ["cannot find -lc", "unable to find library -lc", "library 'c' not found"];
        return Err(Failure::Compile(if no_libc.iter().any(|text| errors.contains(text)) {
            "this machine has no static C library (libc6-dev on Debian, glibc-static on Fedora)".to_owned()
        } else {
            first.to_owned()
        }));
    }
    Err(Failure::Resolve(first.to_owned()))
}

/// Returns the compiler's flags: static, and with the same bytes wherever it is built. Flags of the outer
/// build may ask for this machine's processor, or for instrumentation, so only the choice of the linker is
/// taken over.
fn rustflags(root: &Path) -> OsString {
    let outer = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let mut flags: Vec<OsString> = Vec::new();
    let mut last = "";
    for flag in outer.split('\x1f') {
        let is_linker = |value: &str| value.starts_with("linker=") || value.starts_with("linker-flavor=");
        if last == "-C" && is_linker(flag) || flag.strip_prefix("-C").is_some_and(is_linker) {
            flags.push(format!("-C{}", flag.trim_start_matches("-C")).into());
        }
        last = flag;
    }
    flags.push("-Ctarget-feature=+crt-static".into());
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let places = [(cargo_home, "/cargo"), (Some(root.to_owned()), "/hm-exec")];
    for (place, name) in places {
        if let Some(place) = place {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(place);
            flag.push(format!("={name}"));
            flags.push(flag);
        }
    }
    flags.join(OsStr::new("\x1f"))
}

fn out_dir() -> PathBuf {
    variable("OUT_DIR")
}

/// Returns a variable that cargo sets for build scripts.
fn variable(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_default().into()
}
