//! `hm cache export`.

use std::{path::PathBuf, process::ExitCode};

use hm_exec::{
    image::{ExportError, ExportTarget},
    runner::sandbox::SandboxExportError,
};

use super::StepFiles;
use crate::{
    commands::print,
    exit_code,
    failure::{Failure, Outcome},
    runtime::runtime,
    signals::Interrupts,
};

const LONG_HELP: &str = "\
Examples:
  hm cache export build oci:image               create an OCI layout in the directory `image`
  hm cache export 3fa2/build oci:image:v1       export from an earlier run, with the tag `v1`
  hm cache export build docker-archive:app.tar:app:v1
                                                create an archive for `docker load` as `app:v1`

Use the image in a pipeline as `image: oci:image`. Steps on image `host` cannot be exported.";

/// Export a step's filesystem as a container image
///
/// The image includes the source at /workspace. Exporting the same step again creates the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// The step; RUN is a prefix of a run's id [default: the last run of this directory]
    #[arg(value_name = "[RUN/]STEP")]
    step: String,

    /// Where to write the image: `oci:DIR[:TAG]` or `docker-archive:FILE[:NAME:TAG]`
    #[arg(value_name = "TARGET")]
    to: String,

    /// The pipeline's source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let target = ExportTarget::parse(&args.to).map_err(Failure::input)?;
    let files = StepFiles::find(&args.step, args.dir.as_deref())?;
    let runtime = runtime()?;
    let exported = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        Outcome::Ok(tokio::select! {
            exported = files.export(target) => Some(exported),
            () = interrupts.next() => None,
        })
    })?;
    match exported {
        None => {
            // The packing thread does nothing that is worth waiting for.
            runtime.shutdown_background();
            Ok(ExitCode::from(exit_code::INTERRUPTED))
        }
        Some(Ok(digest)) => print(&format!("{digest}\n")),
        Some(Err(SandboxExportError::Export(error @ (ExportError::Host | ExportError::Occupied { .. })))) => {
            Err(Failure::input("failed to export the image").because(error))
        }
        Some(Err(error)) => Err(Failure::infrastructure("failed to export the image").because(error)),
    }
}
