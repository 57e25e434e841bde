//! Integration tests, all in one binary: one module per topic.

mod compose;
mod ir;
mod ir_oracle;
mod model;
mod pipelines;
mod schedule;
