//! Integration tests, all in one binary, with one module for each topic.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "helpers of tests panic, and take `json!(..)`")]

mod attempt;
mod backends;
mod bind;
mod cache;
mod cli;
#[cfg(feature = "cloud")]
mod cloud;
mod compose;
mod conformance;
#[cfg(all(feature = "docker", target_os = "linux"))]
mod docker;
mod documents;
mod engine;
mod engine_random;
mod engine_scale;
mod event;
mod executor_input;
mod filesystem;
mod greedy;
#[cfg(target_os = "linux")]
mod images;
mod input_oracle;
mod ir;
mod ir_mistakes;
mod ir_oracle;
mod makespan;
mod model;
mod pipelines;
#[cfg(feature = "process")]
mod process;
#[cfg(all(feature = "qemu", target_os = "linux"))]
mod qemu;
#[cfg(target_os = "linux")]
mod sandbox;
mod schedule;
mod scripted;
mod standstill;
#[cfg(all(feature = "step", target_os = "linux"))]
mod step;
mod store;
mod ui;
#[cfg(target_os = "linux")]
mod unpack_oracle;
mod workloads;
