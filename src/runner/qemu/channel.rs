//! The channel to the guest: frames over a socket that QEMU connects to a virtual serial port.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::guest::{MAX_FRAME_BYTES, Order, Word, encode};

/// The messages from the guest.
#[derive(Debug)]
pub(super) struct Words(BufReader<OwnedReadHalf>);

/// The orders to the guest.
#[derive(Debug)]
pub(super) struct Orders(OwnedWriteHalf);

/// Splits a channel into its two directions.
pub(super) fn split(stream: UnixStream) -> (Words, Orders) {
    let (read, write) = stream.into_split();
    (Words(BufReader::with_capacity(1 << 17, read)), Orders(write))
}

impl Words {
    /// Reads the next message. Messages are untrusted: the step may have taken over the guest.
    pub(super) async fn next(&mut self) -> io::Result<Word> {
        let length = self.0.read_u32_le().await? as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::other(format!("the guest sent a message of {length} bytes, which is too long")));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        postcard::from_bytes(&body).map_err(io::Error::other)
    }
}

impl Orders {
    /// Sends an order.
    pub(super) async fn give(&mut self, order: &Order) -> io::Result<()> {
        self.0.write_all(&encode(order)?).await
    }
}
