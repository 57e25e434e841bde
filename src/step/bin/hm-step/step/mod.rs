//! One step from its input to its result.

mod failure;
mod layer;
mod layer_cache;
mod lowers;
mod scratch;

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use hm_exec_step::{
    Exit, Network, StepInput, StepOutput, VERSION, guest,
    jail::{
        self, Bounds, DEFAULT_ENV, End, JailPlace, JailSpec, MountApi, OneShot, Overlay, Root, Watch,
        user_namespace_hint,
    },
};

use self::{failure::Failure, layer_cache::LayerCache, lowers::Lowers, scratch::Scratch};
use crate::{FAILED, usage};

/// The result's file name in the directory of the input.
const RESULT: &str = "result.json";

/// Exit codes if the command did not end by itself.
const TIMED_OUT: u8 = 124;
const KILLED: u8 = 128 + 9;
const TERMINATED: u8 = 128 + 15;

/// Runs what the first argument names. A second argument is right only if this program runs itself again.
#[expect(clippy::print_stderr, reason = "this is a command")]
pub(crate) fn answer(input: &OsStr, has_more: bool) -> ExitCode {
    if !has_more && input == guest::MARKER && std::process::id() == 1 {
        // The machine ends when its first process ends.
        if let Err(why) = guest::run() {
            eprintln!("hm-step: {why}");
        }
        return ExitCode::from(FAILED);
    }
    if has_more && !jail::is_again() {
        return usage();
    }
    match run(input.as_ref()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("hm-step: {failure}");
            ExitCode::from(FAILED)
        }
    }
}

/// Runs the step that the file `input` describes. Returns the exit code for this process.
///
/// # Errors
/// Returns the error that the result file states if the command could not be run, or the reason why there is
/// no result file.
fn run(input: &Path) -> Result<u8, Failure> {
    // This comes first because it may run this program again.
    let oneshot = OneShot::enter_protected()
        .map_err(|error| Failure::lasting(format!("failed to {error}; hint: {}", user_namespace_hint(&error))));
    let name = input.display();
    let input = input.canonicalize().map_err(|error| Failure::io(format_args!("find {name}"), &error))?;
    let dir = input.parent().unwrap_or(Path::new("/"));
    let ran = read(&input).and_then(|input| run_in(dir, &input, &oneshot?));
    let output = match &ran {
        Ok(output) => output,
        Err(failure) => {
            &StepOutput { version: VERSION, exit: failure.exit(), layer: None, layer_lost: None, cache_unused: None }
        }
    };
    write_result(dir, output).map_err(|error| Failure::io(format_args!("write {RESULT}"), &error))?;
    Ok(match ran?.exit {
        Exit::Exited { code, .. } => u8::try_from(code).unwrap_or(FAILED),
        Exit::OutOfMemory => KILLED,
        Exit::TimedOut => TIMED_OUT,
        Exit::Terminated => TERMINATED,
        Exit::Failed { .. } => FAILED,
    })
}

fn read(input: &Path) -> Result<StepInput, Failure> {
    let json = fs::read(input).map_err(|error| Failure::io(format_args!("read {}", input.display()), &error))?;
    StepInput::decode(&json).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::lasting(format!("failed to read {}: {error}{cause}", input.display()))
    })
}

fn run_in(dir: &Path, input: &StepInput, oneshot: &OneShot) -> Result<StepOutput, Failure> {
    let parts = lowers::find(dir, &input.stack)?;
    let id_map = oneshot.user_namespace().id_map();
    let (cache, cache_unused) = match LayerCache::open(id_map, &input.stack) {
        Ok(cache) => (cache, None),
        Err(why) => (None, Some(why)),
    };
    let paths = parts.iter().flat_map(|part| [Some(&*part.path), part.attributes.as_deref()]).flatten();
    let paths: Vec<&Path> = paths.chain(cache.iter().map(LayerCache::dir)).collect();
    let scratch = Scratch::new(oneshot, dir, &paths)?;
    // Cached layers are locked for as long as the step uses them.
    let Lowers { lowers, cached: _cached } = lowers::make(&input.stack, &parts, cache.as_ref(), &scratch, id_map)?;
    let upper = scratch.make_dir("upper")?;
    let spec = spec(input, oneshot, &scratch, &lowers, &upper)?;
    let bounds =
        Bounds { timeout: input.timeout_ms.map(Duration::from_millis), grace: Duration::from_millis(input.grace_ms) };
    let end =
        oneshot.run(&spec, input.limits.network == Network::None, bounds).map_err(|error| Failure::setup(&error))?;
    let exit = match end {
        End::Exited { code } => Exit::exited(code),
        End::OutOfMemory => Exit::OutOfMemory,
        End::TooManyProcesses => Exit::Exited { code: KILLED.into(), too_many_processes: true },
        End::TimedOut => Exit::TimedOut,
        End::Interrupted => Exit::Terminated,
        // Steps are not traced here.
        End::Killed | End::Untraceable => {
            return Err(Failure::passing("the step was killed by another process, or this machine is out of memory"));
        }
    };
    let (layer, layer_lost) = match input.packs(&exit).then(|| layer::pack(&upper, dir, id_map)) {
        None => (None, None),
        Some(Ok(layer)) => (layer, None),
        Some(Err(failure)) if exit == Exit::exited(0) => return Err(failure),
        Some(Err(failure)) => (None, Some(failure.to_string())),
    };
    Ok(StepOutput { version: VERSION, exit, layer, layer_lost, cache_unused })
}

/// Returns the specification of the step's jail.
fn spec(
    input: &StepInput,
    oneshot: &OneShot,
    scratch: &Scratch,
    lowers: &[PathBuf],
    upper: &Path,
) -> Result<JailSpec, Failure> {
    if !input.workdir.starts_with('/') {
        return Err(Failure::lasting(format!("the work directory {:?} is not an absolute path", input.workdir)));
    }
    let limits = input.limits;
    let watch = Watch { memory_bytes: limits.memory_bytes, pids: limits.pids };
    let mut env = BTreeMap::from(DEFAULT_ENV);
    env.extend(input.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    Ok(JailSpec {
        user_namespace: oneshot.user_namespace(),
        mount_api: MountApi::of_this_kernel(),
        mountpoint: c_path(&scratch.make_dir("root")?)?,
        root: Root::Overlay(Overlay {
            lowers: lowers.iter().map(|lower| c_path(lower)).collect::<Result<_, _>>()?,
            upper: c_path(upper)?,
            work: c_path(&scratch.make_dir("work")?)?,
        }),
        place: JailPlace::Root,
        binds: jail::resolver(lowers).into_iter().collect(),
        overlays: Vec::new(),
        resolver: None,
        own_names: Vec::new(),
        secrets: Vec::new(),
        shares_network: limits.network == Network::Host,
        cgroups: Vec::new(),
        group_views: Vec::new(),
        watch: (watch != Watch::default()).then_some(watch),
        memory_bytes: limits.memory_bytes,
        workdir: c_string("the work directory", &*input.workdir)?,
        argv: vec![c"/bin/sh".into(), c"-c".into(), c_string("the command", &*input.command)?],
        pack: None,
        trace: None,
        terminal: false,
        env: env.into_iter().map(|(name, value)| variable(name, value)).collect::<Result<_, _>>()?,
    })
}

fn variable(name: &str, value: &str) -> Result<CString, Failure> {
    if name.is_empty() || name.contains('=') {
        return Err(Failure::lasting(format!("invalid variable name {name:?}")));
    }
    c_string(&format!("{name:?}"), format!("{name}={value}"))
}

fn c_path(path: &Path) -> Result<CString, Failure> {
    c_string("a path", path.as_os_str().as_bytes())
}

fn c_string(what: &str, text: impl Into<Vec<u8>>) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::lasting(format!("{what} contains a NUL byte")))
}

/// Writes the result atomically.
fn write_result(dir: &Path, output: &StepOutput) -> io::Result<()> {
    let aside = dir.join(format!(".{RESULT}"));
    fs::write(&aside, serde_json::to_vec(output)?)?;
    fs::rename(&aside, dir.join(RESULT))
}
