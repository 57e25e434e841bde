//! Questions for names over TCP.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{names::Asked, served::Served};

/// Answers the step's questions, one after the other, with the help of a resolver of the machine.
pub(super) async fn relay(served: &Served, mut step: TcpStream, mut far: TcpStream) -> io::Result<()> {
    while let Some(message) = read(&mut step).await? {
        let answer = match served.names.ask(&message) {
            Asked::Answered(answer) => answer,
            Asked::Blocked(answer, name) => {
                served.record_blocked_name(name);
                answer
            }
            Asked::Pass => {
                write(&mut far, &message).await?;
                let answer = read(&mut far).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                served.names.answered(&message, answer)
            }
            Asked::Drop => return Ok(()),
        };
        write(&mut step, &answer).await?;
    }
    Ok(())
}

/// Reads a message. Returns `None` at the end.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => length?,
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
