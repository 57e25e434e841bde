//! The runners of `hm`.

#[cfg(target_os = "linux")]
use std::sync::Arc;
use std::{num::NonZeroUsize, path::PathBuf};

use hm_exec::{
    Engine, RunnerSet,
    image::ImageOptions,
    open_files,
    runner::{
        docker::{Docker, DockerBuilder, DockerRunner},
        process::ProcessRunner,
    },
    store::StoreHandle,
};
#[cfg(target_os = "linux")]
use hm_exec::{
    remote_cache::RemoteCache,
    runner::{
        RunnerError,
        cloud::{CloudBuilder, CloudRunner},
        qemu::{Accelerator, Qemu, QemuBuilder, QemuRunner},
        sandbox::{SandboxBuilder, SandboxRunner},
    },
};

use crate::{
    config::{Config, Sharing, VmTable},
    failure::{Failure, Outcome},
    reporter::to_stderr,
    store,
};

/// The runners of `hm`, by the names that pipelines use. On systems without the sandbox there is no default
/// runner: running without isolation must be a decision, not a fallback.
#[derive(Debug, RunnerSet)]
pub(crate) struct Runners {
    #[cfg(target_os = "linux")]
    #[runner(default)]
    sandbox: SandboxRunner,
    process: ProcessRunner,
    docker: DockerRunner,
    #[cfg(target_os = "linux")]
    vm: QemuRunner,
    #[cfg(target_os = "linux")]
    cloud: CloudRunner,
}

impl Runners {
    /// Creates the runners, on the store in [`store::dir`]. Nothing is opened before one of them needs it.
    pub(crate) fn new(config: Config) -> Outcome<Self> {
        Ok(Self::on(&store::handle()?, &[], ImageOptions::default(), config))
    }

    /// Boots a machine for the runner `vm`, if none has booted yet.
    #[cfg(target_os = "linux")]
    pub(crate) async fn boot_machine(&self) -> Result<Accelerator, RunnerError> {
        self.vm.backend().trial().await
    }

    /// Creates the runners on a store that is also used otherwise, with options on how images are found. The
    /// sandbox shows `host_dirs` to steps on image `host`.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only Linux has the sandbox"))]
    pub(crate) fn on(store: &StoreHandle, host_dirs: &[PathBuf], images: ImageOptions, config: Config) -> Self {
        #[cfg(target_os = "linux")]
        let sandbox = sandbox(store, host_dirs, images.clone());
        let docker = docker(images.clone(), config.docker_host.clone());
        #[cfg(target_os = "linux")]
        let docker = docker.local(Arc::clone(sandbox.userns()));
        Self {
            process: ProcessRunner::new(store.clone()),
            docker: docker.build(store.clone()),
            #[cfg(target_os = "linux")]
            vm: vm(store, local(&sandbox, host_dirs, images.clone()), config.vm.clone()),
            #[cfg(target_os = "linux")]
            cloud: cloud(store, images, config).userns(Arc::clone(sandbox.userns())).build(),
            #[cfg(target_os = "linux")]
            sandbox,
        }
    }

    /// Creates an engine on the runners. It keeps its journals, and looks cached steps up in their store.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only Linux has the remote cache"))]
    pub(crate) fn engine(
        self,
        store: &StoreHandle,
        jobs: Option<NonZeroUsize>,
        remote: Option<RemoteCache>,
    ) -> Outcome<Engine<Self>> {
        #[cfg(target_os = "linux")]
        let remote = remote.map(|remote| remote.userns(Arc::clone(self.sandbox.userns())));
        let mut builder = Engine::builder(self).runs_dir(store::runs_dir()?).cache(store.clone());
        // More steps than that wait for a slot: they would fail because they could not open files.
        let most = open_files::enough_for();
        if let Some(jobs) = jobs {
            if most < jobs {
                to_stderr(&format!(
                    "warning: running {most} steps at once instead of {jobs}: the limit on open files is too low \
                     (ulimit -n)"
                ));
            }
            builder = builder.parallelism(jobs.min(most));
        } else if let Ok(here) = std::thread::available_parallelism() {
            builder = builder.parallelism(here.min(most));
        }
        #[cfg(target_os = "linux")]
        if let Some(remote) = remote {
            builder = builder.remote_cache(remote);
        }
        Ok(builder.build()?)
    }
}

/// Returns the remote cache, if one is used: by default for steps of runner `cloud` only, unless the user
/// asked for more.
#[cfg(target_os = "linux")]
pub(crate) fn remote_cache(images: &ImageOptions, config: &Config) -> Outcome<Option<RemoteCache>> {
    let (reads, writes) = match config.cache {
        Some(Sharing::Off) => return Ok(None),
        Some(Sharing::Read) => (true, false),
        Some(Sharing::Write) => (false, true),
        Some(Sharing::Both) | None => (true, true),
    };
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    match RemoteCache::new(endpoint.clone()) {
        Ok(cache) => {
            let cache = cache.read(reads).write(writes).local_steps(config.cache.is_some());
            Ok(Some(cache.images(images.clone())))
        }
        // The cloud runner reports the error if a step needs it.
        Err(_) if config.cache.is_none() => Ok(None),
        Err(error) => Err(Failure::input(format_args!("--remote-cache: {error}"))),
    }
}

/// Returns `None`: only Linux has the remote cache.
#[cfg(not(target_os = "linux"))]
pub(crate) fn remote_cache(_: &ImageOptions, _: &Config) -> Outcome<Option<RemoteCache>> {
    Ok(None)
}

#[cfg(not(target_os = "linux"))]
pub(crate) enum RemoteCache {}

/// Creates the sandbox of `hm`.
#[cfg(target_os = "linux")]
pub(crate) fn sandbox(store: &StoreHandle, host_dirs: &[PathBuf], images: ImageOptions) -> SandboxRunner {
    let builder = SandboxRunner::builder().store(store.clone()).keep_failed(true).images(images);
    host_dirs.iter().fold(builder, |builder, dir| builder.host_dir(dir)).build()
}

/// Describes the docker runner of `hm`, for the daemon that the user named, or else for the one that is
/// found. A failed step's files are kept only if the run requests it: daemons export an image only as a
/// whole, which may take longer than the step.
pub(crate) fn docker(images: ImageOptions, host: Option<String>) -> DockerBuilder {
    let builder = Docker::builder().images(images);
    match host {
        Some(host) => builder.host(host),
        None => builder,
    }
}

/// Describes the sandbox in which `hm` runs virtual machines.
#[cfg(target_os = "linux")]
fn local(sandbox: &SandboxRunner, host_dirs: &[PathBuf], images: ImageOptions) -> SandboxBuilder {
    let builder = SandboxRunner::builder().userns(Arc::clone(sandbox.userns())).images(images);
    host_dirs.iter().fold(builder, |builder, dir| builder.host_dir(dir))
}

/// Creates the virtual machine runner of `hm`.
#[cfg(target_os = "linux")]
fn vm(store: &StoreHandle, local: SandboxBuilder, table: VmTable) -> QemuRunner {
    let VmTable { memory, cpus, qemu, virtiofsd, kernel, modules, templates } = table;
    let mut builder = Qemu::builder().local(local);
    if let Some(memory) = memory {
        builder = builder.memory(memory.bytes);
    }
    if let Some(cpus) = cpus {
        builder = builder.cpus(cpus);
    }
    type Set = fn(QemuBuilder, PathBuf) -> QemuBuilder;
    let paths: [(Option<PathBuf>, Set); 5] = [
        (qemu, QemuBuilder::qemu),
        (virtiofsd, QemuBuilder::virtiofsd),
        (kernel, QemuBuilder::kernel),
        (modules, QemuBuilder::modules),
        (templates, QemuBuilder::templates),
    ];
    for (path, set) in paths {
        if let Some(path) = path {
            builder = set(builder, path);
        }
    }
    builder.build(store.clone()).keep_failed(true)
}

/// Describes the cloud runner of `hm`.
#[cfg(target_os = "linux")]
fn cloud(store: &StoreHandle, images: ImageOptions, config: Config) -> CloudBuilder {
    let Config { endpoint, logs, platform, jobs, .. } = config;
    let builder = CloudRunner::builder().store(store.clone()).images(images);
    let builder = platform.into_iter().fold(builder, |builder, (name, value)| builder.platform_property(name, value));
    let builder = match jobs {
        Some(jobs) => builder.jobs(jobs),
        None => builder,
    };
    let builder = match endpoint {
        Some(endpoint) => builder.endpoint(endpoint),
        None => builder,
    };
    match logs {
        Some(logs) => builder.log_service(logs),
        None => builder,
    }
}
