//! `hm schema`: the formats of files as JSON schemas.

mod ir;

use std::process::ExitCode;

use clap::ValueEnum;

use super::print_json;
use crate::{config, failure::Outcome};

const LONG_HELP: &str = "\
Examples:
  hm schema ir > ir.schema.json          a schema that an editor, or a program that writes IR, can use
  hm schema config > hm.schema.json      the same for hm.toml";

/// Print the JSON schema of a kind of file, for editors and programs
///
/// `hm plan` also checks what a schema cannot say, such as names that occur twice and cycles.
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP)]
pub(crate) struct Args {
    /// The kind of file
    #[arg(value_enum)]
    kind: FileKind,
}

/// A kind of file that people and programs write.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FileKind {
    /// A pipeline, as in .hm/*.json: v0 IR, which `hm render` prints
    Ir,
    /// The configuration: hm.toml and config.toml
    Config,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    print_json(&match args.kind {
        FileKind::Ir => ir::schema(),
        FileKind::Config => config::schema(),
    })
}
