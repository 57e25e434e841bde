//! The connection to the daemon: finding it, and checking that it is usable.

use std::{env, path::PathBuf, time::Duration};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error, query_parameters::InspectNetworkOptions};

use crate::runner::Probe;

/// How long a daemon may take for what takes seconds at most, even on a busy machine. Docker before 20.10.26
/// can deadlock when one container starts while another ends (moby#46661). It then answers most requests no
/// more.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How long a daemon may take for requests that move files or wait for a command: loading an image of many
/// gigabytes takes minutes. Attempts are ended by cancellation, not by this timeout.
const LONG_PATIENCE: Duration = Duration::from_secs(60 * 60);
/// How long a probe waits.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

const HINT: &str = "start Docker or Podman's service, or set its address with --docker-host, DOCKER_HOST, or `host` of \
                    [docker] in .hm/hm.toml";

/// The daemon's network that gives each container a network namespace of its own.
pub(super) const BRIDGE: &str = "bridge";

/// Returns the daemon's address: the given one, the one in `DOCKER_HOST`, or the first socket that exists.
pub(super) fn place(host: Option<&str>) -> String {
    let variable = env::var("DOCKER_HOST").ok();
    if let Some(host) = host.or(variable.as_deref()).filter(|host| !host.is_empty()) {
        return host.to_owned();
    }
    let dir = |name: &str| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let (run, home) = (dir("XDG_RUNTIME_DIR"), dir("HOME"));
    let sockets = [
        Some("/var/run/docker.sock".into()),
        run.as_ref().map(|dir| dir.join("docker.sock")),
        home.as_ref().map(|dir| dir.join(".docker/run/docker.sock")),
        run.as_ref().map(|dir| dir.join("podman/podman.sock")),
        Some("/run/podman/podman.sock".into()),
    ];
    let found = sockets.iter().flatten().find(|socket| socket.exists());
    let socket = found.cloned().unwrap_or_else(|| "/var/run/docker.sock".into());
    format!("unix://{}", socket.display())
}

/// Connects, and negotiates the version of the protocol.
pub(super) async fn connect(place: &str) -> Result<Docker, Error> {
    let docker = match place.strip_prefix("unix://") {
        Some(path) => Docker::connect_with_unix(path, PATIENCE.as_secs(), API_DEFAULT_VERSION)?,
        None => Docker::connect_with_host(place)?.with_timeout(PATIENCE),
    };
    docker.negotiate_version().await
}

/// Returns the client for requests that move files or wait for a command. Others fail after minutes.
pub(super) fn patient(docker: &Docker) -> Docker {
    docker.clone().with_timeout(LONG_PATIENCE)
}

/// Probes whether the daemon at `place` is usable.
pub(super) async fn probe(place: &str) -> Probe {
    let asked = async {
        let docker = connect(place).await?;
        docker.info().await
    };
    let unusable = |reason: String, hint: &str| Probe::Unusable { reason, hint: hint.into() };
    let info = match tokio::time::timeout(PROBE_PATIENCE, asked).await {
        Err(_) => return unusable(format!("{place} does not answer"), HINT),
        Ok(Err(error)) => return unusable(format!("{place}: {error}"), HINT),
        Ok(Ok(info)) => info,
    };
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return unusable(format!("{place} does not run Linux containers"), "switch the daemon to Linux containers");
    }
    let version = info.server_version.unwrap_or_else(|| "unknown version".into());
    let driver = info.driver.map(|driver| format!(", {driver}")).unwrap_or_default();
    Probe::Usable { note: Some(format!("{version} at {place}{driver}")) }
}

/// Probes whether the daemon at `place` can give containers networks of their own.
pub(super) async fn probe_network(place: &str) -> Probe {
    let asked = async {
        let docker = connect(place).await?;
        match docker.inspect_network(BRIDGE, None::<InspectNetworkOptions>).await {
            // Older versions of Podman know their bridge by this name only, here.
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                docker.inspect_network("podman", None::<InspectNetworkOptions>).await
            }
            inspected => inspected,
        }
    };
    let reason = match tokio::time::timeout(PROBE_PATIENCE, asked).await {
        Ok(Ok(_)) => return Probe::usable(),
        Ok(Err(Error::DockerResponseServerError { status_code: 404, .. })) => {
            format!("the daemon at {place} has no bridge, so steps cannot have networks of their own")
        }
        Ok(Err(error)) => format!("{place}: {error}"),
        Err(_) => format!("{place} does not answer"),
    };
    let hint = "start the daemon with a bridge, or use the machine's network: `--network host`, or \
                `\"network\": \"host\"` in `runner_args`";
    Probe::unusable(reason, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_some_requests_may_take_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let docker = Docker::connect_with_unix(socket.to_str().unwrap(), PATIENCE.as_secs(), API_DEFAULT_VERSION);
        let docker = docker.unwrap();
        assert_eq!((patient(&docker).timeout(), docker.timeout()), (LONG_PATIENCE, PATIENCE));
    }
}
