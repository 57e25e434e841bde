//! QEMU's control channel: lines of JSON, as its QMP specification defines them.

use std::{collections::VecDeque, io};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::error::NoMachine;

/// The longest answer in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// A channel that accepts commands.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Waits for the greeting, and negotiates capabilities, which enables commands.
    pub(super) async fn open(stream: UnixStream) -> Result<Self, NoMachine> {
        let mut qmp = Self { stream: BufReader::new(stream), events: VecDeque::new() };
        qmp.line().await?;
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command, and returns its answer.
    pub(super) async fn run(&mut self, command: &'static str, arguments: Value) -> Result<Value, NoMachine> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await.map_err(NoMachine::Talk)?;
        self.answer(command).await
    }

    /// Passes a descriptor to QEMU, which then refers to it by `name`.
    pub(super) async fn hand_over(&mut self, name: &str, fd: impl std::os::fd::AsFd) -> Result<(), NoMachine> {
        const COMMAND: &str = "getfd";
        let mut line = json!({ "execute": COMMAND, "arguments": { "fdname": name } }).to_string();
        line.push('\n');
        let socket = self.stream.get_ref();
        let sent = socket
            .async_io(tokio::io::Interest::WRITABLE, || {
                Ok(crate::jail::wire::try_send(socket, line.as_bytes(), &[fd.as_fd()])?)
            })
            .await;
        sent.map_err(NoMachine::Talk)?;
        self.answer(COMMAND).await.map(drop)
    }

    /// Waits for the end of a migration.
    pub(super) async fn migrated(&mut self) -> Result<(), NoMachine> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.line().await?,
            };
            if event["event"] == "MIGRATION" {
                match event["data"]["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed") => {
                        let why = "the migration failed".into();
                        return Err(NoMachine::Refused { command: "migrate", why });
                    }
                    _ => {}
                }
            }
        }
    }

    async fn answer(&mut self, command: &'static str) -> Result<Value, NoMachine> {
        loop {
            let mut line = self.line().await?;
            if line.get("event").is_some() {
                self.events.push_back(line);
            } else if let Some(error) = line.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(NoMachine::Refused { command, why });
            } else {
                return Ok(line["return"].take());
            }
        }
    }

    async fn line(&mut self) -> Result<Value, NoMachine> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
        if read.map_err(NoMachine::Talk)? == 0 {
            return Err(NoMachine::Talk(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(|error| NoMachine::Talk(io::Error::other(error)))
    }
}
