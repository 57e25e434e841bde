//! Integration tests, all in one binary: one module per topic.

mod compose;
mod ir;
mod model;
mod pipelines;
mod schedule;
