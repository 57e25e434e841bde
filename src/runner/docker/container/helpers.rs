//! Containers that run no command of a user, and what they give to the step's container: a network that it
//! shares with services, and files of other steps.

use std::{collections::HashMap, sync::Arc};

use bollard::{
    Docker as Client,
    models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions},
};

use super::{
    super::{
        connection::BRIDGE,
        inputs::{self, InputVolume},
        shared::Shared,
    },
    Container, USER,
};
use crate::{
    runner::{ExecutorInput, Limits, RunnerError, StepContext},
    store::Store,
};

impl Container {
    /// Starts a container of the same image that only holds a network, in which `names` lead to 127.0.0.1.
    pub(in crate::runner::docker) async fn hold_network(&self, names: &[&str]) -> Result<Self, RunnerError> {
        let Self { shared, connection, container_image, .. } = self;
        let holder = Self::new(shared, connection, container_image, &Limits::default());
        let host_config = HostConfig {
            network_mode: Some(BRIDGE.into()),
            // Containers in its network have its `/etc/hosts`.
            extra_hosts: Some(names.iter().map(|name| format!("{name}:127.0.0.1")).collect()),
            ..HostConfig::default()
        };
        // Until the container is removed: nothing is ever written to its input.
        let body = ContainerCreateBody { open_stdin: Some(true), ..holder.helper_body("read -r line", host_config) };
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
        ContainerCreateBody {
            image: Some(self.container_image.image.clone()),
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
        let volume = match ctx.kept() {
            Some(volume) => volume,
            None => InputVolume::make(self, store, ctx, input).await?,
        };
        ctx.keep_for_next(&volume);
        self.inputs = Some(volume);
        Ok(())
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
