//! `--format json`: the event stream, one event a line, nothing else.

use std::io::{self, Write};

use hm_exec::BuildEvent;

use super::{Out, Render};

pub(super) struct Json<W> {
    out: Out<W>,
}

impl<W: Write> Json<W> {
    pub(super) fn new(sink: W) -> Self {
        Self { out: Out::new(sink) }
    }
}

impl<W: Write> Render for Json<W> {
    fn event(&mut self, event: &BuildEvent) {
        self.out.push(|buffer| {
            // Writing plain data into memory does not fail.
            let _ = serde_json::to_writer(&mut *buffer, event);
            buffer.push(b'\n');
        });
    }

    fn notice(&mut self, text: &str) {
        super::to_stderr(text);
    }

    fn is_dirty(&self) -> bool {
        self.out.is_dirty()
    }

    fn flush(&mut self) {
        self.out.flush();
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.out.finish()
    }
}
