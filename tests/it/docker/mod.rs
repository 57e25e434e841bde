//! The docker runner, on a test daemon.

mod chains;
mod cleanup;
mod inputs;
mod keep;
mod limits;
mod networks;
mod odd_layers;
mod outputs;
mod services;
