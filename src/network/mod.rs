//! Networks of steps: a network namespace for each, connected to the machine's network by this process.
//!
//! ```text
//!   enter ─▶ pool ─▶ made: the zygote makes a namespace ─▶ thread ─▶ served, until the step is dead ─▶ pool
//!                                                                      │
//!              packet ◀─ nat ◀─ frames of the TUN ◀────────────────────┤
//!              relay  ◀─ tcp ◀─ SYN: access, connect, accept ◀─────────┤
//!              resolver, udp ◀─ datagrams: access, names ◀─────────────┘
//! ```
//!
//! Input: what a step may reach. Output: a namespace that the step enters, and a log of its connections.
//! `packet`, `nat`, `names` and `hello` do no input or output: a step may send them anything.

mod access;
mod addresses;
mod counters;
mod dns;
mod dns_stream;
mod hello;
#[cfg(test)]
mod hello_oracle;
mod log;
mod made;
mod names;
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
pub(crate) use log::{ConnectionSink, NetworkSummary};
pub(crate) use made::NetworkError;
pub(crate) use pool::{Network, Networks};
pub(crate) use resolver::config as resolver_config;
