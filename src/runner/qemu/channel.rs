//! The guest's side of a machine: frames over a socket that QEMU connects to a virtual serial port.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::guest::{MAX_FRAME_BYTES, Order, Word, encode};

/// What the guest says.
#[derive(Debug)]
pub(super) struct Words(BufReader<OwnedReadHalf>);

/// What it is told.
#[derive(Debug)]
pub(super) struct Orders(OwnedWriteHalf);

/// Both ends of a channel.
pub(super) fn split(stream: UnixStream) -> (Words, Orders) {
    let (read, write) = stream.into_split();
    (Words(BufReader::with_capacity(1 << 17, read)), Orders(write))
}

impl Words {
    /// The next word. What a guest says may be anything: whoever runs there may have taken it over.
    pub(super) async fn next(&mut self) -> io::Result<Word> {
        let length = self.0.read_u32_le().await? as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::other(format!("the guest wants to say {length} bytes at once")));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        postcard::from_bytes(&body).map_err(io::Error::other)
    }
}

impl Orders {
    /// Gives an order.
    pub(super) async fn give(&mut self, order: &Order) -> io::Result<()> {
        self.0.write_all(&encode(order)?).await
    }
}
