//! Networks of steps: a network namespace for each, connected to the machine's network by this process.
//!
//! ```text
//!   enter ─▶ pool ─▶ made: the zygote makes a namespace ─▶ thread ─▶ served, until the step is dead ─▶ pool
//!                                                                      │
//!              packet ◀─ nat ◀─ frames of the TUN ◀────────────────────┤
//!              relay  ◀─ tcp ◀─ SYN: access, connect, accept ◀─────────┤
//!              resolver, udp ◀─ datagrams ◀────────────────────────────┘
//! ```
//!
//! Input: what a step may reach. Output: a namespace that the step enters, and a log of its connections.
//! `packet` and `nat` do no input or output: a step may send them anything.

mod access;
mod addresses;
mod dns;
mod log;
mod made;
mod nat;
#[cfg(test)]
mod nat_oracle;
mod packet;
mod pool;
mod relay;
mod resolver;
mod served;
mod tcp;
mod thread;
mod udp;

pub(crate) use access::Access;
pub(crate) use log::ConnectionLog;
pub(crate) use made::NetworkError;
pub(crate) use pool::{Network, Networks};
pub(crate) use resolver::config as resolver_config;
