//! The sandbox on this machine: what a step may do, what it leaves, and what it leaves behind.

mod files;
mod harness;
