//! Network namespaces that the zygote makes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::RecvFlags;
use tokio::io::Interest;

use crate::{
    jail::{Report, Request, SetupError, wire},
    userns::{Zygote, register},
};

/// A network namespace with a device and listeners.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) namespace: OwnedFd,
    pub(super) tun: OwnedFd,
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
    let received = ours.async_io(Interest::READABLE, |ours| Ok(wire::receive(ours, RecvFlags::DONTWAIT)?)).await?;
    let Some((message, fds)) = received else {
        return Err(io::Error::other("the sandbox's helper ended").into());
    };
    let mut fds = fds.into_iter();
    match postcard::from_bytes(&message).map_err(io::Error::other)? {
        Report::Failed(error) => Err(NetworkError::Setup(error)),
        Report::Network { reusable } => match (fds.next(), fds.next()) {
            (Some(namespace), Some(tun)) => Ok(Made { namespace, tun, listeners: fds.collect(), reusable }),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        },
        _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}
