//! Containers that run no command of a user, and what they give to the step's container: a network that it
//! shares with services, and files of other steps.

use std::{collections::HashMap, sync::Arc};

use bollard::{
    Docker as Client,
    models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions},
};
use tokio::sync::mpsc;

use super::{
    super::{
        connection::BRIDGE,
        container_image::ContainerImage,
        inputs::{self, InputVolume},
        shared::Shared,
    },
    Container, DEFAULT_ENV, USER,
};
use crate::{
    runner::{ExecutorInput, Limits, RunnerError, StepContext},
    store::Store,
};

/// The limits of a container that only holds a network: memory in bytes, and processes.
const HOLDER_MEMORY: i64 = 64 << 20;
const HOLDER_PIDS: i64 = 8;

impl Container {
    /// Starts a container of the same image that only holds a network, in which `names` lead to 127.0.0.1.
    pub(in crate::runner::docker) async fn hold_network(&self, names: &[&str]) -> Result<Self, RunnerError> {
        let Self { shared, connection, container_image, .. } = self;
        let mut holder = Self::new(shared, connection, container_image, &Limits::default());
        holder.holds = Some(mpsc::channel(1));
        // The step's image may be one that a step has changed, so its shell is trusted no more than the step.
        let host_config = HostConfig {
            network_mode: Some(BRIDGE.into()),
            memory: Some(HOLDER_MEMORY),
            memory_swap: Some(HOLDER_MEMORY),
            pids_limit: Some(HOLDER_PIDS),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            readonly_rootfs: Some(true),
            // Containers in its network have its `/etc/hosts`.
            extra_hosts: Some(names.iter().map(|name| format!("{name}:127.0.0.1")).collect()),
            ..HostConfig::default()
        };
        // Until the container is removed: nothing is ever written to its input, and without `TMOUT` bash has
        // no time limit.
        let script = "unset TMOUT; read -r line";
        let body = ContainerCreateBody { open_stdin: Some(true), ..holder.helper_body(script, host_config) };
        holder.create(body).await?;
        holder.start().await?;
        Ok(holder)
    }

    /// Creates a container of the same image that has a volume and never starts.
    pub(in crate::runner::docker) async fn filler(&self, volume: &str) -> Result<Self, RunnerError> {
        let Self { shared, connection, container_image, .. } = self;
        let filler = Self::new(shared, connection, container_image, &Limits::default());
        let mount = Mount {
            typ: Some(MountType::VOLUME),
            source: Some(volume.to_owned()),
            target: Some(inputs::PLACE.into()),
            volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
            ..Mount::default()
        };
        let host_config =
            HostConfig { network_mode: Some("none".into()), mounts: Some(vec![mount]), ..HostConfig::default() };
        filler.create(filler.helper_body("true", host_config)).await?;
        Ok(filler)
    }

    /// Describes a container that runs no command of a user.
    fn helper_body(&self, script: &str, host_config: HostConfig) -> ContainerCreateBody {
        let log_config = Some(HostConfigLogConfig { typ: Some("none".into()), config: None });
        let ContainerImage { image, env, stray, .. } = &*self.container_image;
        // In Docker, a name without a value removes a variable.
        let removed = env.keys().chain(stray).filter(|name| DEFAULT_ENV.iter().all(|(own, _)| own != name)).cloned();
        let env = DEFAULT_ENV.iter().map(|(name, value)| format!("{name}={value}")).chain(removed).collect();
        ContainerCreateBody {
            image: Some(image.clone()),
            env: Some(env),
            entrypoint: Some(vec!["/bin/sh".into(), "-c".into()]),
            cmd: Some(vec![script.to_owned()]),
            user: Some(USER.into()),
            labels: Some(self.labels()),
            host_config: Some(HostConfig { log_config, ..host_config }),
            ..ContainerCreateBody::default()
        }
    }

    /// Brings the files of other steps to the daemon, once for all attempts of a step.
    pub(in crate::runner::docker) async fn bring_inputs(
        &mut self,
        ctx: &StepContext,
        store: &Arc<Store>,
        input: &ExecutorInput,
    ) -> Result<(), RunnerError> {
        let volume = match ctx.kept::<InputVolume>() {
            // It may have been removed from outside meanwhile.
            Some(volume) if volume.is_there().await? => volume,
            _ => InputVolume::make(self, store, ctx, input).await?,
        };
        ctx.keep_for_next(&volume);
        self.inputs = Some(volume);
        Ok(())
    }

    /// Leaves the container to the caller to remove. Returns its name, if it may exist.
    pub(in crate::runner::docker) fn into_name(mut self) -> Option<String> {
        std::mem::take(self.may_exist.get_mut()).then(|| std::mem::take(&mut self.name))
    }

    pub(in crate::runner::docker) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(in crate::runner::docker) fn client(&self) -> &Client {
        &self.connection.client
    }

    pub(in crate::runner::docker) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the labels of what belongs to this container.
    pub(in crate::runner::docker) fn labels(&self) -> HashMap<String, String> {
        self.connection.owner.labels(self.container_image.run)
    }
}
