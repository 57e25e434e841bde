//! The set of runners, and how each is set up.

use std::{path::PathBuf, sync::Arc};

pub(super) use hm_exec::remote_cache::RemoteCache;
use hm_exec::{
    Engine, EngineBuilder, RunnerSet,
    image::ImageOptions,
    runner::{
        RunnerError,
        cloud::{CloudBuilder, CloudRunner},
        docker::DockerRunner,
        process::ProcessRunner,
        qemu::{Qemu, QemuBuilder, QemuRunner},
        sandbox::{SandboxBuilder, SandboxRunner},
    },
    store::StoreHandle,
};

use super::docker;
use crate::{
    config::{CacheTrust, Config, Sharing, VmTable},
    failure::{Failure, Outcome},
};

/// The runners of `hm`, by the names that pipelines use.
#[derive(Debug, RunnerSet)]
pub(crate) struct Runners {
    #[runner(default)]
    sandbox: SandboxRunner,
    process: ProcessRunner,
    docker: DockerRunner,
    vm: QemuRunner,
    cloud: CloudRunner,
}

impl Runners {
    /// Creates the runners on a store that is also used otherwise, with options on how images are found. The
    /// sandbox shows `host_dirs` to steps on image `host`.
    pub(crate) fn on(store: &StoreHandle, host_dirs: &[PathBuf], images: ImageOptions, config: Config) -> Self {
        let sandbox = sandbox(store, host_dirs, images.clone());
        let docker = docker(images.clone(), config.docker_host.clone()).local(Arc::clone(sandbox.userns()));
        Self {
            process: ProcessRunner::new(store.clone()),
            docker: docker.build(store.clone()),
            vm: vm(store, local(&sandbox, host_dirs, images.clone()), config.vm.clone()),
            cloud: cloud(store, images, config).userns(Arc::clone(sandbox.userns())).build(),
            sandbox,
        }
    }

    /// Describes an engine on the runners, with the remote cache if one is used.
    pub(super) fn builder(self, remote: Option<RemoteCache>) -> EngineBuilder<Self> {
        let remote = remote.map(|remote| remote.userns(Arc::clone(self.sandbox.userns())));
        let builder = Engine::builder(self);
        match remote {
            Some(remote) => builder.remote_cache(remote),
            None => builder,
        }
    }

    /// Boots a machine for the runner `vm`, if none has booted yet. Returns the name of its accelerator.
    pub(crate) async fn boot_machine(&self) -> Result<String, RunnerError> {
        self.vm.backend().trial().await.map(|accelerator| accelerator.to_string())
    }
}

/// Returns the remote cache, if one is used: by default for steps of runner `cloud` only, unless the user
/// asked for more.
pub(crate) fn remote_cache(images: &ImageOptions, config: &mut Config) -> Outcome<Option<RemoteCache>> {
    let CacheTrust { scope, keys, signing_key } = std::mem::take(&mut config.cache_trust);
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
            let cache = cache.scope(scope).trusted_keys(keys);
            let cache = match signing_key {
                Some(key) => cache.signing_key(key),
                None => cache,
            };
            Ok(Some(cache.images(images.clone())))
        }
        // The cloud runner reports the error if a step needs it.
        Err(_) if config.cache.is_none() => Ok(None),
        Err(error) => Err(Failure::input(format_args!("--remote-cache: {error}"))),
    }
}

/// Creates the sandbox of `hm`.
pub(crate) fn sandbox(store: &StoreHandle, host_dirs: &[PathBuf], images: ImageOptions) -> SandboxRunner {
    let builder = SandboxRunner::builder().store(store.clone()).keep_failed(true).images(images);
    host_dirs.iter().fold(builder, |builder, dir| builder.host_dir(dir)).build()
}

/// Describes the sandbox in which `hm` runs virtual machines.
fn local(sandbox: &SandboxRunner, host_dirs: &[PathBuf], images: ImageOptions) -> SandboxBuilder {
    let builder = SandboxRunner::builder().userns(Arc::clone(sandbox.userns())).images(images);
    host_dirs.iter().fold(builder, |builder, dir| builder.host_dir(dir))
}

/// Creates the virtual machine runner of `hm`.
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
