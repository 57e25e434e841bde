//! Network namespaces that the zygote makes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
};

use rustix::{io::Errno, net::RecvFlags};
use tokio::io::Interest;

use crate::{
    awake,
    jail::{Report, Request, SetupError, wire},
    userns::{PATIENCE, Zygote, register},
};

/// A network namespace with a device and listeners.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) namespace: OwnedFd,
    pub(super) tun: OwnedFd,
    /// The file with the namespace's counters.
    pub(super) counters: OwnedFd,
    pub(super) listeners: Vec<OwnedFd>,
    /// Whether the namespace can be used by one step after the other.
    pub(super) reusable: bool,
}

/// Why there is no network for a step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("failed to {0}")]
    Setup(SetupError),
    #[error("failed to make a network")]
    Talk(#[from] io::Error),
}

/// Has the zygote make a network namespace.
///
/// # Errors
/// Returns an error if the kernel refuses something, or if the zygote is gone.
///
/// # Cancel safety
/// If the future is dropped, the namespace goes.
pub(super) async fn make(zygote: &Zygote) -> Result<Made, NetworkError> {
    let (ours, theirs) = wire::pair().map_err(io::Error::from)?;
    zygote.request(Request::Network, &[theirs.as_fd()]).await?;
    drop(theirs);
    let ours = register(ours, Interest::READABLE)?;
    let receiving = pin!(ours.async_io(Interest::READABLE, |ours| Ok(wire::receive(ours, RecvFlags::DONTWAIT)?)));
    let Some(received) = awake::timeout(PATIENCE, receiving).await else {
        return Err(zygote.give_up().into());
    };
    let Some((message, fds)) = received? else {
        return Err(io::Error::other("the sandbox's helper ended").into());
    };
    let mut fds = fds.into_iter();
    match postcard::from_bytes(&message).map_err(io::Error::other)? {
        Report::Failed(error) => Err(NetworkError::Setup(error)),
        Report::Network { reusable } => match (fds.next(), fds.next(), fds.next()) {
            (Some(namespace), Some(tun), Some(counters)) => {
                let made = Made { namespace, tun, counters, listeners: fds.collect(), reusable };
                // Without a listener, which is lost if this process can open no more, connections would hang.
                if made.listeners.is_empty() { Err(io::Error::from(Errno::MFILE).into()) } else { Ok(made) }
            }
            _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        },
        _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}
