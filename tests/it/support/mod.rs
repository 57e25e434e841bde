//! What tests share: fixtures, runners that follow a script, test servers, and reference models.
//!
//! Benches and fuzz targets include some of these modules by path, so modules refer to each other by `super`.

pub(crate) mod actions;
pub(crate) mod attempt;
pub(crate) mod backends;
pub(crate) mod buildgrid;
pub(crate) mod database;
pub(crate) mod docker;
pub(crate) mod docker_daemon;
pub(crate) mod events;
pub(crate) mod filesystem;
pub(crate) mod graphs;
pub(crate) mod hostile_project;
pub(crate) mod images;
pub(crate) mod input_oracle;
pub(crate) mod ir;
pub(crate) mod ir_oracle;
pub(crate) mod journal_oracle;
pub(crate) mod layer_writer;
pub(crate) mod live_run;
pub(crate) mod log_service;
pub(crate) mod makespan;
pub(crate) mod model;
pub(crate) mod odd_layers;
pub(crate) mod output_order;
pub(crate) mod overlay_view;
pub(crate) mod policy_oracle;
pub(crate) mod processes;
pub(crate) mod programs;
pub(crate) mod project;
pub(crate) mod proxy;
pub(crate) mod python;
pub(crate) mod qemu;
pub(crate) mod recorder;
pub(crate) mod registry;
pub(crate) mod remote_engine;
pub(crate) mod rootfs;
pub(crate) mod run_meta;
pub(crate) mod sandbox;
pub(crate) mod scripted;
pub(crate) mod step;
pub(crate) mod store;
pub(crate) mod terminal;
pub(crate) mod unpack_oracle;
pub(crate) mod users;
pub(crate) mod workloads;
