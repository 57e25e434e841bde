//! `hm man`: the manual pages, one for each command, made of the same texts as `--help`.

use std::{env, fs, io, path::PathBuf, process::ExitCode};

use chrono::{DateTime, Utc};
use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use super::print;
use crate::{
    cli,
    failure::{Failure, Outcome},
    reporter::text,
};

/// Write the manual pages of hm and its commands into a directory
///
/// The pages have the date of SOURCE_DATE_EPOCH, or today's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory, such as ~/.local/share/man/man1; created if it does not exist
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let date = date()?;
    // Everybody knows `help`, and it would have a page for each command.
    let mut command = shown(cli().disable_help_subcommand(true));
    command.build();
    let written = fs::create_dir_all(&args.to).and_then(|()| {
        let mut pages = Vec::new();
        collect(&command, &date, &mut pages)?;
        pages.iter().try_for_each(|(name, page)| fs::write(args.to.join(name), page))?;
        Ok(pages.len())
    });
    let count = written.map_err(|error| {
        Failure::infrastructure(format_args!("failed to write manual pages to {}", args.to.display())).because(error)
    })?;
    print(&format!("wrote {} to {}\n", text::count(count, "page"), args.to.display()))
}

/// Returns the date of the pages.
fn date() -> Outcome<String> {
    let day = |at: DateTime<Utc>| at.format("%Y-%m-%d").to_string();
    let Some(epoch) = env::var_os("SOURCE_DATE_EPOCH") else { return Ok(day(Utc::now())) };
    let epoch = epoch.to_str().and_then(|text| text.parse().ok());
    epoch.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).map(day).ok_or_else(|| {
        Failure::input("SOURCE_DATE_EPOCH is not a number of seconds").hint("unset it, or set it as `date +%s` prints")
    })
}

/// Shows all options with their whole text, also those that the short help leaves out.
fn shown(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_short_help(false)).mut_subcommands(shown)
}

/// Appends the names and contents of the pages of a command and of those below it.
fn collect(command: &Command, date: &str, pages: &mut Vec<(String, String)>) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, date, pages)?;
    }
    let man = Man::new(command.clone()).date(date).source(concat!("hm ", env!("CARGO_PKG_VERSION"))).manual("hm");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        last_sections(&text.to_string()).to_writer(&mut page)?;
    }
    pages.push((man.get_filename(), tidy(&String::from_utf8_lossy(&page))));
    Ok(())
}

/// Replaces empty lines and line breaks by one macro each, and removes those before a macro that begins a new
/// part. Checkers of pages warn of them.
fn tidy(page: &str) -> String {
    let mut out = String::new();
    // Whether there is an empty line since the last text.
    let mut gap: Option<bool> = None;
    for line in page.lines() {
        if matches!(line, "" | ".br") {
            gap = Some(gap == Some(true) || line.is_empty());
            continue;
        }
        let begins_part = [".TP", ".SH", ".PP", ".RS", ".RE", ".IP"].iter().any(|name| line.starts_with(name));
        if let Some(is_empty) = gap.take().filter(|_| !begins_part) {
            out.push_str(if is_empty { ".sp\n" } else { ".br\n" });
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// Returns what follows the options of a help text. A line such as `Examples:` after an empty one is a
/// heading, and indented lines keep their shape.
fn last_sections(text: &str) -> Roff {
    let mut roff = Roff::default();
    let (mut follows_blank, mut is_literal, mut has_heading) = (true, false, false);
    for line in text.lines() {
        if line.trim().is_empty() {
            follows_blank = true;
            continue;
        }
        let is_indented = line.starts_with(' ');
        if is_literal && !is_indented {
            roff.control("fi", []);
            is_literal = false;
        }
        let heading = line.strip_suffix(':').filter(|line| follows_blank && !is_indented && !line.contains('`'));
        match heading {
            Some(heading) => {
                // What follows is text; the shells' examples are in it.
                let heading = heading.split(", for").next().unwrap_or(heading);
                roff.control("SH", [heading.to_uppercase().as_str()]);
                has_heading = true;
            }
            None => {
                if !has_heading {
                    roff.control("SH", ["NOTES"]);
                    has_heading = true;
                } else if follows_blank {
                    roff.control("PP", []);
                }
                if is_indented && !is_literal {
                    roff.control("nf", []);
                    is_literal = true;
                }
                roff.text([roman(line)]);
            }
        }
        follows_blank = false;
    }
    if is_literal {
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_texts_and_literal_lines_are_kept_apart() {
        let text = "Examples:\n  hm run\n  hm plan\n\nSome text\nof two lines.\n\nExit codes:\n  0  passed\nWith `x` only:\n  1  failed";
        let expected = "\
.SH EXAMPLES
.nf
  hm run
  hm plan
.fi
.PP
Some text
of two lines.
.SH \"EXIT CODES\"
.nf
  0  passed
.fi
With `x` only:
.nf
  1  failed
.fi
";
        let shown = last_sections(text).to_roff().replace("\\fR", "");
        assert_eq!(shown.trim_end(), expected.trim_end());
        assert!(last_sections("a").to_roff().contains(".SH NOTES"));
    }
}
