//! Integration tests, all in one binary, with one module for each topic. Their helpers are in [`support`].

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "helpers of tests panic, and take `json!(..)`")]

mod bind;
mod cache;
mod cli;
mod cloud;
mod command;
mod compose;
mod conformance;
mod docker;
mod documents;
mod engine;
mod event;
mod executor_input;
mod house;
mod images;
mod ir;
mod plan_builder;
mod process;
mod qemu;
mod sandbox;
mod schedule;
mod service;
mod source;
mod step;
mod step_inputs;
mod step_tables;
mod store;
mod support;
#[cfg(feature = "cli")]
mod terminal;
mod ui;
