//! Reads test results in the form of JUnit, which has no standard: only what all writers agree on is used.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek},
    path::Path,
};

use quick_xml::{
    Reader, XmlVersion,
    escape::resolve_predefined_entity,
    events::{BytesStart, Event},
};

use super::Mask;
use crate::model::{FailedTest, TestResults};

/// The largest file that is read, in bytes.
const MOST_BYTES: u64 = 64 << 20;
/// The most elements within each other.
const MOST_LEVELS: usize = 100;
/// The most failed tests that are named.
const MOST_FAILURES: usize = 100;
/// The longest name, in bytes.
const NAME_BYTES: usize = 300;
/// The longest text of a test that is kept while it is read, in bytes. It may begin with a long secret.
const TEXT_BYTES: usize = 64 << 10;
/// The longest line of a message, in bytes.
const LINE_BYTES: usize = 200;

/// A file is not valid XML, or not what test results look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is malformed at byte {position}: {reason}")]
#[non_exhaustive]
pub struct MalformedJunit {
    /// The place, in bytes from the start.
    pub position: u64,
    /// What is wrong there.
    pub reason: String,
}

/// A test case that is being read.
#[derive(Debug, Default)]
struct Case {
    name: String,
    is_failed: bool,
    is_skipped: bool,
    message: String,
    /// The text of the failure that is being read, as far as it is needed.
    text: String,
}

/// Reads test results. Returns `None` if the document is something else. Memory does not depend on the number
/// of tests. Only the entities that XML itself defines are expanded.
///
/// # Errors
/// Returns an error if the document is malformed.
pub fn read_junit(document: impl BufRead) -> Result<Option<TestResults>, MalformedJunit> {
    read_masked(document, &str::to_owned)
}

/// Adds the test results of an output to those of the step, if it has some. The inner error is one of the
/// document. The file was just written, and its position is anywhere.
pub(super) fn add_file(
    all: &mut Option<TestResults>,
    file: &mut File,
    (path, size): (&Path, u64),
    mask: &Mask,
) -> io::Result<Result<(), MalformedJunit>> {
    if path.extension().is_none_or(|extension| extension != "xml") || size > MOST_BYTES {
        return Ok(Ok(()));
    }
    file.rewind()?;
    Ok(read_masked(BufReader::new(file), &|text| mask.text(text)).map(|results| {
        if let Some(results) = results {
            merge(all.get_or_insert_default(), results);
        }
    }))
}

/// Reads test results as [`read_junit`] does. `mask` replaces secrets, before texts are cut: what is left of
/// a secret would not be found.
fn read_masked(document: impl BufRead, mask: &dyn Fn(&str) -> String) -> Result<Option<TestResults>, MalformedJunit> {
    let mut reader = Reader::from_reader(document);
    let mut buffer = Vec::new();
    let mut results = TestResults::default();
    // The names of the elements around the current place that matter, with their levels.
    let (mut level, mut case, mut failure) = (0_usize, None::<(usize, Case)>, None::<usize>);
    let mut has_root = false;
    loop {
        buffer.clear();
        let event = match reader.read_event_into(&mut buffer) {
            Ok(event) => event,
            Err(error) => return Err(malformed(reader.error_position(), &error)),
        };
        let position = reader.buffer_position();
        match event {
            Event::Start(element) => {
                level += 1;
                if level > MOST_LEVELS {
                    return Err(malformed(position, &format!("more than {MOST_LEVELS} elements within each other")));
                }
                if level == 1 && !begins_results(&element, &mut has_root) {
                    return Ok(None);
                }
                start(&element, level, (&mut case, &mut failure)).map_err(|error| malformed(position, &error))?;
            }
            Event::Empty(element) => {
                if level == 0 && !begins_results(&element, &mut has_root) {
                    return Ok(None);
                }
                start(&element, level + 1, (&mut case, &mut failure)).map_err(|error| malformed(position, &error))?;
                end(level + 1, (&mut case, &mut failure), &mut results, mask);
            }
            Event::End(_) => {
                end(level, (&mut case, &mut failure), &mut results, mask);
                level = level.saturating_sub(1);
            }
            Event::Text(text) => add_text(&mut case, failure, &text.xml10_content()),
            Event::CData(text) => add_text(&mut case, failure, &text.xml10_content()),
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().map_err(|error| malformed(position, &error))?;
                match (character, resolve_predefined_entity(&reference)) {
                    (Some(character), _) => add_text(&mut case, failure, character.encode_utf8(&mut [0; 4])),
                    (None, Some(text)) => add_text(&mut case, failure, text),
                    // An entity that the document defines.
                    (None, None) => {}
                }
            }
            Event::Eof if level > 0 => return Err(malformed(position, &"it ends within an element")),
            Event::Eof => return Ok(has_root.then_some(results)),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

/// Adds the results of another file.
fn merge(all: &mut TestResults, more: TestResults) {
    all.tests = all.tests.saturating_add(more.tests);
    all.failed = all.failed.saturating_add(more.failed);
    all.skipped = all.skipped.saturating_add(more.skipped);
    all.failures.extend(more.failures);
    all.failures.truncate(MOST_FAILURES);
}

fn malformed(position: u64, reason: &impl ToString) -> MalformedJunit {
    MalformedJunit { position, reason: clip(&reason.to_string(), LINE_BYTES) }
}

/// Returns whether this is the root of test results.
fn begins_results(element: &BytesStart<'_>, has_root: &mut bool) -> bool {
    *has_root |= matches!(element.local_name().as_ref(), "testsuites" | "testsuite");
    *has_root
}

fn start(
    element: &BytesStart<'_>,
    level: usize,
    (case, failure): (&mut Option<(usize, Case)>, &mut Option<usize>),
) -> Result<(), quick_xml::Error> {
    let name = element.local_name();
    match (name.as_ref(), case) {
        ("testcase", case @ None) => {
            let name = attribute(element, "name")?;
            let class = attribute(element, "classname")?;
            let name = if class.is_empty() { name } else { format!("{class} {name}") };
            *case = Some((level, Case { name, ..Case::default() }));
        }
        ("failure" | "error", Some((at, case))) if level == *at + 1 => {
            if case.message.is_empty() {
                case.message = attribute(element, "message")?;
                if case.message.trim().is_empty() {
                    case.message.clear();
                }
            }
            case.is_failed = true;
            case.text.clear();
            *failure = Some(level);
        }
        ("skipped", Some((at, case))) if level == *at + 1 => case.is_skipped = true,
        _ => {}
    }
    Ok(())
}

fn end(
    level: usize,
    (case, failure): (&mut Option<(usize, Case)>, &mut Option<usize>),
    results: &mut TestResults,
    mask: &dyn Fn(&str) -> String,
) {
    if *failure == Some(level) {
        *failure = None;
        if let Some((_, case)) = case
            && case.message.is_empty()
        {
            case.message = std::mem::take(&mut case.text);
        }
    }
    let Some((_, case)) = case.take_if(|(at, _)| *at == level) else { return };
    results.tests = results.tests.saturating_add(1);
    if case.is_failed {
        results.failed = results.failed.saturating_add(1);
        if results.failures.len() < MOST_FAILURES {
            let name = clip(&mask(&case.name), NAME_BYTES);
            results.failures.push(FailedTest { name, message: first_line(&mask(&case.message)) });
        }
    } else if case.is_skipped {
        results.skipped = results.skipped.saturating_add(1);
    }
}

fn add_text(case: &mut Option<(usize, Case)>, failure: Option<usize>, text: &str) {
    if let (Some((_, case)), Some(_)) = (case, failure)
        && case.text.len() < TEXT_BYTES
    {
        case.text.push_str(&clip(text, TEXT_BYTES));
    }
}

/// Returns an attribute's value, or the start of a long one. It is empty if the element has no such
/// attribute.
fn attribute(element: &BytesStart<'_>, name: &str) -> Result<String, quick_xml::Error> {
    let Some(attribute) = element.try_get_attribute(name)? else { return Ok(String::new()) };
    match attribute.normalized_value(XmlVersion::Implicit1_0) {
        Ok(value) => Ok(clip(&value, TEXT_BYTES)),
        // It refers to entities that the document defines.
        Err(_) => Ok(clip(&attribute.value, TEXT_BYTES)),
    }
}

/// Returns the first line that is not blank.
fn first_line(text: &str) -> String {
    clip(text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default(), LINE_BYTES)
}

fn clip(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::junit_oracle as oracle, *};

    fn read(document: &str) -> Result<Option<TestResults>, MalformedJunit> {
        oracle::check(document.as_bytes());
        read_junit(document.as_bytes())
    }

    #[test]
    fn tests_are_counted_and_failures_have_names_and_first_lines() {
        let document = r#"<?xml version="1.0"?>
            <testsuites tests="99"><testsuite name="s">
                <testcase name="good" classname="c"/>
                <testcase name="bad" classname="a.b"><failure message="&#10; one &lt; two&#10;more">text</failure></testcase>
                <testcase name="worse"><error><![CDATA[
                    thrown
                    at line 1]]></error><system-out>failure</system-out></testcase>
                <testcase name="entity"><failure>a &amp; b</failure></testcase>
                <testcase name="left out"><skipped/></testcase>
                <testcase name="again"><flakyFailure message="first"/></testcase>
            </testsuite></testsuites>"#;
        let results = read(document).unwrap().unwrap();
        assert_eq!((results.tests, results.failed, results.skipped), (6, 3, 1));
        let failures: Vec<_> = results.failures.iter().map(|it| (&*it.name, &*it.message)).collect();
        assert_eq!(failures, [("a.b bad", "one < two"), ("worse", "thrown"), ("entity", "a & b")]);
    }

    #[test]
    fn other_documents_are_no_results_and_malformed_ones_name_the_place() {
        assert_eq!(read("<project><testsuite/></project>"), Ok(None));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("<testsuite/>").unwrap().unwrap().tests, 0);
        let error = read("<testsuite><testcase></testsuite>").unwrap_err();
        assert!(error.position >= 11, "{error}");
        assert!(read("<testsuite><testcase>").is_err());
        let deep = format!("<testsuite>{}", "<a>".repeat(1000));
        assert!(read(&deep).unwrap_err().reason.contains("within each other"));
    }

    #[test]
    fn secrets_are_replaced_before_texts_are_cut() {
        let secret = "s".repeat(LINE_BYTES);
        let document = format!(
            "<testsuite><testcase name='{}{secret}'><failure message='{}{secret}'/></testcase>\
             <testcase name='b'><failure>\n{secret}</failure></testcase></testsuite>",
            "n".repeat(NAME_BYTES - 10),
            "m".repeat(LINE_BYTES - 10),
        );
        let masked = read_masked(document.as_bytes(), &|text| text.replace(&secret, "***")).unwrap().unwrap();
        for failure in &masked.failures {
            assert!(!failure.name.contains('s') && !failure.message.contains('s'), "{failure:?}");
        }
        assert_eq!(masked.failures[1].message, "***");
    }

    #[test]
    fn entities_of_the_document_are_not_expanded() {
        let document = r#"<!DOCTYPE t [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY x SYSTEM "/etc/passwd">]>
            <testsuite><testcase name="t&b;"><failure message="&x;">&b;&x;</failure></testcase></testsuite>"#;
        let results = read(document).unwrap().unwrap();
        assert_eq!((&*results.failures[0].name, &*results.failures[0].message), ("t&b;", "&x;"));
    }

    proptest! {
        #[test]
        fn any_parts_in_any_order_give_results_or_an_error(parts in prop::collection::vec(prop::sample::select(vec![
            "<testsuites>", "</testsuites>", "<testsuite>", "</testsuite>", "<testcase name='a'>", "</testcase>",
            "<testcase/>", "<failure message='m'>", "</failure>", "<error/>", "<skipped/>", "text", "&lt;", "&#10;",
            "&u;", "<![CDATA[", "]]>", "<!--", "-->", "<x:testcase>", "</x:testcase>", "<", "\u{0}", "ä",
        ]), 0..30)) {
            oracle::check(parts.concat().as_bytes());
            oracle::check(format!("<testsuite>{}</testsuite>", parts.concat()).as_bytes());
        }

        #[test]
        fn any_bytes_give_results_or_an_error(bytes in any::<Vec<u8>>()) {
            oracle::check(&bytes);
        }
    }
}
