//! Steps with a supervisor: a process of the helper that all processes of the step descend from. See
//! `jail::supervisor`.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::Mutex;
use uuid::Uuid;

use super::{group::Group, launch::Launch};
use crate::{
    jail::{End, ProcessSpec},
    runner::{
        RunnerError, StepContext, StepResult,
        machine_memory::MemoryWatch,
        sandbox::{Control, StepOutput, Supervised, c_string, supervise},
    },
    sync,
    userns::{Zygote, locate},
};

/// The helper that starts supervisors. It is started with the first step, and again if it died.
#[derive(Debug, Default)]
pub(in crate::runner) struct Helper {
    program: Option<PathBuf>,
    running: Mutex<Option<Arc<Zygote>>>,
}

impl Helper {
    /// Returns the helper that is this program, instead of the one found by default.
    pub(in crate::runner) fn new(program: PathBuf) -> Self {
        Self { program: Some(program), running: Mutex::default() }
    }

    /// Returns the helper that all commands of this process share which have the same program.
    pub(super) fn shared(program: Option<PathBuf>) -> Arc<Self> {
        static SHARED: sync::Mutex<BTreeMap<Option<PathBuf>, Arc<Helper>>> = sync::Mutex::new(BTreeMap::new());
        let mut shared = SHARED.lock();
        let helper = shared.entry(program.clone());
        Arc::clone(helper.or_insert_with(|| Arc::new(Self { program, running: Mutex::default() })))
    }

    /// Returns the running helper, or `None` if this program has none.
    ///
    /// # Errors
    /// Returns an error if the helper cannot be started.
    pub(super) async fn zygote(&self) -> Result<Option<Arc<Zygote>>, RunnerError> {
        let mut slot = self.running.lock().await;
        if let Some(zygote) = slot.as_ref().filter(|zygote| zygote.is_alive()) {
            return Ok(Some(Arc::clone(zygote)));
        }
        let Ok(program) = locate(self.program.as_deref()) else { return Ok(None) };
        let start = move || Ok(Arc::new(Zygote::start_unisolated(&program)?));
        let zygote = RunnerError::blocking("start the helper process", start).await?;
        Ok(Some(Arc::clone(slot.insert(zygote))))
    }
}

/// Runs the command to its end, and returns its exit code and what it used. All output has been forwarded,
/// and no process is left, when this returns.
pub(super) async fn run(
    zygote: &Zygote,
    ctx: &StepContext,
    step_id: Uuid,
    launch: &Launch,
) -> Result<StepResult, RunnerError> {
    let spec = spec(launch)?;
    let control = Control { cancel: &ctx.cancel, grace: ctx.grace };
    let output = StepOutput { bus: &ctx.event_bus, step_id };
    // If this future is dropped, or the supervisor was killed, the step's processes are killed by their mark.
    let mut group = Group::without_leader(launch.mark.clone());
    let memory = MemoryWatch::start();
    let ended = supervise(zygote, &spec, control, &output).await;
    match ended {
        Ok(Supervised { ended_all: true, .. }) => group.is_gone(),
        Ok(Supervised { ended_all: false, .. }) | Err(_) => group.end().await,
    }
    let Supervised { end, usage, ended_all } = ended?;
    match end {
        End::Interrupted => Err(ctx.interrupted()),
        End::Exited { code } if ended_all => match memory.ended(code) {
            Ok(code) => Ok(StepResult::exited(code).with_usage(usage)),
            Err(error) => Err(error.with_usage(usage)),
        },
        _ => Err(RunnerError::infrastructure(
            "keep the step running",
            std::io::Error::other("its supervisor was killed by another process"),
        )),
    }
}

fn spec(launch: &Launch) -> Result<ProcessSpec, RunnerError> {
    let text = |what: &str, text: &OsStr| c_string(what, text.as_bytes());
    let argv = launch.argv.iter().map(|arg| text("the command", arg)).collect::<Result<Vec<CString>, _>>()?;
    let env = launch.env.iter().map(|(name, value)| {
        text("a variable of the environment", &[name, OsStr::new("="), value].join(OsStr::new("")))
    });
    let env = env.collect::<Result<_, _>>()?;
    Ok(ProcessSpec { workdir: text("the work directory", launch.dir.as_os_str())?, argv, env })
}
