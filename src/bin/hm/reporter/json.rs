//! `--format json` and `json-full`: the event stream, one event a line, and nothing else.

use std::io::{self, Write};

use hm_exec::{BuildEvent, event::LogLines};

use super::{
    BufferedWriter, Reporter,
    json_line::{JsonLine, needs_no_escape},
    published::{PlanFacts, Translator},
};

pub(super) struct Json<W> {
    out: BufferedWriter<W>,
    /// How the newest line of output was written.
    line: Option<JsonLine>,
    /// Translates all events but lines of output. `None` shows every event unchanged.
    translator: Option<Translator>,
}

impl<W: Write> Json<W> {
    /// Creates a reporter. If there are `facts` about the plan, it uses the dialect of the published crate.
    pub(super) fn new(sink: W, facts: Option<PlanFacts>) -> Self {
        Self { out: BufferedWriter::new(sink), line: None, translator: facts.map(Translator::new) }
    }
}

impl<W: Write> Reporter for Json<W> {
    fn event(&mut self, event: &BuildEvent) {
        if let (Some(translator), false) = (&mut self.translator, matches!(event, BuildEvent::StepLog { .. })) {
            let Some(translated) = translator.translate(event) else { return };
            self.out.push(|buffer| {
                // Writing plain data to memory does not fail.
                drop(serde_json::to_writer(&mut *buffer, &translated));
                buffer.push(b'\n');
            });
            return;
        }
        self.out.push(|buffer| {
            let is_written = self.line.as_ref().is_some_and(|line| line.push(buffer, event));
            if !is_written {
                match JsonLine::like(event) {
                    Some(line) => {
                        line.push(buffer, event);
                        self.line = Some(line);
                    }
                    // Writing plain data to memory does not fail.
                    None => drop(serde_json::to_writer(&mut *buffer, event)),
                }
            }
            buffer.push(b'\n');
        });
    }

    fn lines(&mut self, lines: &LogLines<'_>) {
        let Some(template) = JsonLine::of(lines) else { return lines.events().for_each(|event| self.event(&event)) };
        let is_plain = needs_no_escape(&lines.text);
        for (line, seq) in lines.lines().zip(lines.seq..) {
            self.out.push(|buffer| {
                template.push_line(buffer, seq, line, is_plain);
                buffer.push(b'\n');
            });
        }
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

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};
    use hm_exec::event::StdStream;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn shown(events: &[BuildEvent]) -> String {
        let mut shown = Vec::new();
        let mut json = Box::new(Json::new(&mut shown, None));
        events.iter().for_each(|event| json.event(event));
        json.finish().unwrap();
        String::from_utf8(shown).unwrap()
    }

    fn plain(events: &[BuildEvent]) -> String {
        events.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect()
    }

    fn line(seq: u64, line: &str) -> BuildEvent {
        let (step_id, ts) = (Uuid::from_u128(7), DateTime::UNIX_EPOCH);
        BuildEvent::StepLog {
            seq,
            step_id,
            stream: StdStream::Stdout,
            line: line.into(),
            ts,
            attempt: 1,
            partial: false,
        }
    }

    /// Generates events of a few origins, so that neighbours often share theirs and often do not.
    fn events() -> impl Strategy<Value = BuildEvent> {
        let text = prop_oneof![
            "(\\PC|[\\x00-\\x1f\\x7f-\\u{9f}\"\\\\/\\u{2028}]){0,40}",
            prop::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            "[ -~]{0,80}",
        ];
        let millis = prop_oneof![Just(0), Just(1), Just(1000), -99_999_999_999_999..99_999_999_999_999i64];
        let origin =
            (0..2u128, any::<bool>(), millis, prop_oneof![Just(0), Just(1), Just(1_500)], 0..2u32, any::<bool>());
        (any::<u64>(), text, origin, 0..20u8).prop_map(|(seq, line, origin, kind)| {
            let (id, is_stdout, millis, nanos, attempt, partial) = origin;
            let step_id = Uuid::from_u128(id);
            let stream = if is_stdout { StdStream::Stdout } else { StdStream::Stderr };
            let ts = DateTime::UNIX_EPOCH + TimeDelta::milliseconds(millis) + TimeDelta::nanoseconds(nanos);
            if kind == 0 {
                return BuildEvent::StepLogLost { seq, step_id, attempt, message: line.into() };
            }
            BuildEvent::StepLog { seq, step_id, stream, line, ts, attempt, partial }
        })
    }

    proptest! {
        #[test]
        fn every_event_is_what_serde_makes_of_it(events in prop::collection::vec(events(), 0..20)) {
            prop_assert_eq!(shown(&events), plain(&events));
        }
    }

    #[test]
    fn every_character_that_json_escapes_is_escaped_as_serde_does_wherever_it_stands() {
        for before in ["", "short", "just sixteen of ", "more than sixteen of them"] {
            let lines = (0..=0x100u32).filter_map(char::from_u32).map(|c| format!("{before}{c}{before}"));
            let events: Vec<_> = lines.enumerate().map(|(seq, text)| line(seq as u64, &text)).collect();
            assert_eq!(shown(&events), plain(&events));
        }
    }

    #[test]
    fn a_line_of_a_megabyte_and_one_that_looks_like_json_are_no_exception() {
        let quotes = "\"\\\n".repeat(1 << 19);
        let texts = ["", r#"","ts":"x","seq":0,"line":"""#, &quotes, "last"];
        let events: Vec<_> = texts.iter().zip(0..).map(|(text, seq)| line(seq, text)).collect();
        assert_eq!(shown(&events), plain(&events));
    }
}
