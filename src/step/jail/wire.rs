//! Messages with descriptors over SEQPACKET sockets, and specs in memory files.
//!
//! A message is small. Data that may be large (the spec) is in a memory file whose descriptor is sent with
//! the message, so no limit on a socket's message size applies.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::MemfdFlags,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::{SetupError, error::ResultExt, spec::SPEC_VERSION};

/// The maximum number of descriptors in one message.
const MAX_FDS: usize = 12;
/// The maximum length of a message, in bytes. Error texts are cut to fit.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// Returns a connected pair of SEQPACKET sockets, both blocking and close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one message.
pub fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_with(socket, message, fds, SendFlags::NOSIGNAL)
}

/// Sends one message, or fails with `EAGAIN` if the socket is full.
pub fn try_send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_with(socket, message, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, flags).map(drop)
}

/// A message and its descriptors.
pub type Message = (Vec<u8>, Vec<OwnedFd>);

/// Receives one message. Returns `None` at the end of the stream.
pub fn receive(socket: impl AsFd, flags: RecvFlags) -> Result<Option<Message>, Errno> {
    let mut message = [0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    Ok(Some((message[..received.bytes].to_vec(), fds)))
}

/// Sends `value` as one message.
pub fn send_value(socket: impl AsFd, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = postcard::to_stdvec(value).map_err(|_| Errno::INVAL)?;
    send(socket, &bytes, fds)
}

/// Writes `value`, after the version, to a new memory file.
pub fn to_memory_file(value: &impl Serialize) -> Result<OwnedFd, SetupError> {
    let bytes = postcard::to_extend(value, SPEC_VERSION.to_le_bytes().to_vec())
        .map_err(|_| SetupError::new("encode the step's spec", Errno::INVAL))?;
    let fd = rustix::fs::memfd_create(c"hm-spec", MemfdFlags::CLOEXEC).doing(|| "make a memory file".into())?;
    let mut file = File::from(fd);
    file.write_all(&bytes).doing(|| "write the step's spec".into())?;
    Ok(file.into())
}

/// Reads what [`to_memory_file`] wrote. Any other version is refused, because it would be decoded wrongly.
pub fn from_memory_file<T: DeserializeOwned>(fd: OwnedFd) -> Result<T, SetupError> {
    let mut file = File::from(fd);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).doing(|| "read the step's spec".into())?;
    let Some((version, body)) = bytes.split_first_chunk() else {
        return Err(SetupError::new("read the step's spec", Errno::INVAL));
    };
    let version = u32::from_le_bytes(*version);
    if version != SPEC_VERSION {
        let doing = format!("read the step's spec: it has version {version}, this helper knows {SPEC_VERSION}");
        return Err(SetupError::new(doing, Errno::PROTO));
    }
    postcard::from_bytes(body).map_err(|_| SetupError::new("decode the step's spec", Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_descriptors() {
        let (left, right) = pair().unwrap();
        let file = to_memory_file(&7_u32).unwrap();
        send(&left, b"x", &[file.as_fd()]).unwrap();
        let (message, mut fds) = receive(&right, RecvFlags::empty()).unwrap().unwrap();
        assert_eq!(message, b"x");
        assert_eq!(from_memory_file::<u32>(fds.pop().unwrap()).unwrap(), 7);
        drop(left);
        assert!(receive(&right, RecvFlags::empty()).unwrap().is_none());
    }

    #[test]
    fn a_spec_of_another_version_is_refused() {
        let fd = rustix::fs::memfd_create(c"t", MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(&(SPEC_VERSION + 1).to_le_bytes()).unwrap();
        let error = from_memory_file::<u32>(file.into()).unwrap_err();
        assert!(error.to_string().contains("version"), "{error}");
    }
}
