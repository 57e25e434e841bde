//! `hm run -h`: the options that most runs need, one line each, on one screen.

use clap::{Arg, Command};

/// The options of `hm run -h`, by id, and what they do in few words: so few that each has one line. The
/// others are in `hm run --help`.
const SHOWN: &[(&str, &str)] = &[
    ("pipeline", "The pipeline [default: the only one, `ci`, or `default`]"),
    ("steps", "Run only these steps, and what they need"),
    ("from", "Run this step, and what waits for it"),
    ("failed", "Run what did not pass the last time"),
    ("dry_run", "Print what would run, and run nothing"),
    ("watch", "Run again after every edit"),
    ("file", "Read the pipeline from a file, not .hm/"),
    ("dir", "The source directory"),
    ("jobs", "How many steps run at once"),
    ("keep_going", "Go on after a failure"),
    ("no_cache", "Ignore cached results"),
    ("refresh", "Ignore the cached result of a step"),
    ("timeout", "Time limit of the build, such as 15m"),
    ("runner", "The runner of steps that name none"),
    ("images", "Replace an image"),
    ("env", "Set a variable for every step"),
    ("secrets", "Provide a secret at /run/secrets/NAME"),
    ("quiet", "Print only what failed"),
    ("logs", "Show all output in `progress`, too"),
];

/// Shortens `hm run -h` to one screen. `hm run --help` stays as it is.
pub(crate) fn shorten(command: Command) -> Command {
    command.mut_args(|arg| match SHOWN.iter().find(|(id, _)| arg.get_id() == *id) {
        Some((_, short)) => with_short_help(arg, short),
        None => arg.hide_short_help(true),
    })
}

fn with_short_help(arg: Arg, short: &'static str) -> Arg {
    let long = arg.get_long_help().or(arg.get_help()).cloned();
    let arg = arg.help(short);
    match long {
        Some(long) => arg.long_help(long),
        None => arg,
    }
}
