//! Integration tests, all in one binary: one module per topic.

mod compose;
mod event;
mod ir;
mod ir_oracle;
mod model;
mod pipelines;
mod schedule;
