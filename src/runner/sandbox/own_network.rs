//! Steps with a network of their own.

use std::{collections::BTreeSet, os::fd::BorrowedFd, sync::Arc};

use uuid::Uuid;

use super::{
    checks::{Failure, start_failure},
    jail::StepNetwork,
    runner::SandboxRunner,
};
use crate::{
    event::EventBus,
    model::Connection,
    network::{self, Access, ConnectionSink, NetworkError, NetworkSummary},
    runner::{Limits, Network, Probe, RunnerError},
    sync::Mutex,
    userns::Zygote,
};

/// The network namespace of a step.
#[derive(Debug, Clone, Copy)]
pub(super) enum StepNamespace<'a> {
    /// The machine's.
    Shared,
    /// A new one that has only a loopback device.
    Loopback,
    /// This one, which the zygote made.
    Given(BorrowedFd<'a>),
}

impl<'a> StepNamespace<'a> {
    /// Returns the one for a step, whose own network is `network`.
    pub(super) fn of(limits: &Limits, network: Option<&'a network::Network>) -> Self {
        match (limits.network, network) {
            (_, Some(network)) => Self::Given(network.namespace()),
            (Network::Host, None) => Self::Shared,
            (Network::None | Network::Private, None) => Self::Loopback,
        }
    }

    pub(super) fn kind(self) -> StepNetwork {
        match self {
            Self::Shared => StepNetwork::Shared,
            Self::Loopback => StepNetwork::Loopback,
            Self::Given(_) => StepNetwork::Given,
        }
    }

    pub(super) fn given(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Shared | Self::Loopback => None,
            Self::Given(namespace) => Some(namespace),
        }
    }
}

/// The destinations of a step's connections, for its trace.
#[derive(Debug, Clone, Default)]
pub(super) struct Destinations(Arc<Mutex<Named>>);

#[derive(Debug, Default)]
struct Named {
    destinations: BTreeSet<String>,
    /// Whether there are others.
    is_full: bool,
}

/// The most destinations that a trace names.
const MAX_DESTINATIONS: usize = 20;

impl Destinations {
    fn add(&self, connection: &Connection) {
        let mut named = self.0.lock();
        let destination = connection.destination();
        if named.destinations.len() < MAX_DESTINATIONS {
            named.destinations.insert(destination);
        } else {
            named.is_full |= !named.destinations.contains(&destination);
        }
    }

    /// Returns the destinations in order, at most some of them.
    pub(super) fn names(&self) -> Vec<String> {
        let named = self.0.lock();
        let others = named.is_full.then(|| "and others".to_owned());
        named.destinations.iter().cloned().chain(others).collect()
    }
}

/// Returns a sink for the connections of a step. It also adds them to `destinations`.
pub(super) fn journal(bus: &EventBus, step_id: Uuid, destinations: Option<Destinations>) -> ConnectionSink {
    let bus = bus.clone();
    Box::new(move |connection| {
        bus.connection(step_id, connection);
        if let Some(destinations) = &destinations {
            destinations.add(connection);
        }
    })
}

/// Returns what the connections of a failed step say about the failure, for the user.
pub(super) fn hint(summary: &NetworkSummary) -> Option<String> {
    if let Some(blocked) = &summary.blocked {
        let what = match blocked.reason.as_deref() {
            Some(reason) => format!("{}: {reason}", blocked.destination()),
            None => blocked.destination(),
        };
        return Some(format!("it may not reach {what} (see `hm logs --network`)"));
    }
    summary.refused_within.then(|| {
        "a connection to its own loopback was refused: to reach a port of this machine, list the port in \
         `host_ports` and connect to host.hm.internal, or use `--network host`"
            .to_owned()
    })
}

/// Makes a network of a step, which the first step that has one will use.
pub(super) async fn probe(runner: &SandboxRunner) -> Probe {
    match runner.network_trial().await {
        Ok(()) => Probe::usable(),
        Err(Failure { reason, hint }) => Probe::Unusable { reason, hint },
    }
}

impl SandboxRunner {
    /// Returns a network for a step, if it gets one of its own that is connected to the machine's. Its
    /// connections go to `sink`.
    pub(super) async fn network(
        &self,
        zygote: &Arc<Zygote>,
        limits: &Limits,
        sink: ConnectionSink,
    ) -> Result<Option<network::Network>, RunnerError> {
        match limits.network {
            Network::Host | Network::None => Ok(None),
            Network::Private => {
                let access = Access { host_ports: limits.host_ports.clone(), egress: limits.egress.clone() };
                Ok(Some(self.networks.enter(zygote, access, sink).await?))
            }
        }
    }

    async fn network_trial(&self) -> Result<(), Failure> {
        let store = self.store().map_err(Failure::of_store)?;
        let zygote = self.zygote(&store).await.map_err(start_failure)?;
        self.networks.prepare(&zygote).await.map_err(|error| Failure {
            reason: format!("steps cannot have a network of their own: {:#}", anyhow::Error::new(error)),
            hint:
                "give the machine or the container /dev/net/tun (`sudo modprobe tun`, `--device /dev/net/tun`), or use \
                   the machine's network: `--network host`, or `\"network\": \"host\"` in `runner_args`"
                    .into(),
        })
    }
}

/// What the kernel refuses once, it refuses again.
impl From<NetworkError> for RunnerError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Talk(_) => Self::infrastructure("make a network for the step", error),
            NetworkError::Setup(error) => Self::unsupported(format!(
                "steps cannot have a network of their own here: failed to {error}; use the machine's, by \
                 `--network host` or `\"network\": \"host\"` in `runner_args`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Connection, ConnectionEnd, Protocol};

    #[test]
    fn a_failed_step_gets_the_rule_that_was_missing() {
        assert_eq!(hint(&NetworkSummary::default()), None);
        let mut summary = NetworkSummary { refused_within: true, ..NetworkSummary::default() };
        let text = hint(&summary).unwrap();
        assert!(text.contains("host_ports") && text.contains("--network host"), "{text}");
        let mut blocked = Connection::new(Protocol::Dns, ConnectionEnd::Blocked);
        blocked.host = Some("a.example".into());
        blocked.reason = Some("`egress` has no entry for a.example".into());
        summary.blocked = Some(blocked);
        let text = hint(&summary).unwrap();
        assert_eq!(text, "it may not reach a.example: `egress` has no entry for a.example (see `hm logs --network`)");
    }
}
