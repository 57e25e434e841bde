//! A run as a page: one file of HTML that needs no network and no server.
//!
//! Input: a report's run. Output: the page, piece by piece. The page is a stylesheet, a script, and data; see
//! docs/design/reports.md. Its data is written one step, and one log, at a time.

mod data;
mod json;
mod log_tails;

use std::io::{self, Write};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use self::log_tails::LogTails;
use super::Report;

const STYLE: &str = include_str!("page/page.css");
const BODY: &str = include_str!("page/page.html");
/// The parts of the script, which share one scope.
const SCRIPTS: [&str; 6] = [
    include_str!("page/base.js"),
    include_str!("page/lists.js"),
    include_str!("page/charts.js"),
    include_str!("page/log.js"),
    include_str!("page/step.js"),
    include_str!("page/views.js"),
];

/// Writes the page.
pub(super) fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let script = format!("(() => {{\n\"use strict\";\n{}}})();\n", SCRIPTS.concat());
    let title = escape(&report.run.pipeline);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
         http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src '{}'; style-src '{}'; img-src \
         data:; base-uri 'none'; form-action 'none'\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" \
         content=\"no-referrer\">\n<link rel=\"icon\" href=\"data:,\">\n<title>{title} · hm report</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n{BODY}",
        digest(&script),
        digest(STYLE),
    )?;
    let tails = LogTails::of(report);
    out.write_all(b"<script type=\"application/json\" id=\"run\">")?;
    json::write(out, &data::Run::of(report, &tails))?;
    // The script comes before the logs, so that a reader sees the run before the logs are loaded.
    write!(out, "</script>\n<script>{script}</script>\n")?;
    for tail in tails.iter() {
        write!(out, "<script type=\"application/json\" id=\"log-{}-{}\">", tail.step.0, tail.attempt)?;
        json::write(out, &tails.read(tail))?;
        out.write_all(b"</script>\n")?;
    }
    out.write_all(b"</body>\n</html>\n")
}

/// Returns the source expression of a policy that allows `text`.
fn digest(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// Escapes text for HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
