//! The parts of a Markdown file that tests examine: headings, links, code spans and fenced blocks.

use std::{collections::BTreeSet, fs, path::Path};

/// A Markdown file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) name: String,
    /// The lines outside of fenced blocks.
    text: Vec<String>,
    pub(crate) blocks: Vec<Block>,
}

/// A fenced block.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The number of its first line.
    pub(crate) line: usize,
    /// The first word after the fence.
    pub(crate) language: String,
    /// The content of an HTML comment on the line before, such as `run: demo`.
    pub(crate) mark: Option<String>,
    pub(crate) lines: Vec<String>,
}

impl Document {
    /// Reads a file of the repository.
    pub(crate) fn read(path: &Path) -> Self {
        let name = path.display().to_string();
        let content = fs::read_to_string(super::root().join(path)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (mut text, mut blocks, mut open) = (Vec::<String>::new(), Vec::new(), None::<(usize, Block)>);
        for (number, line) in content.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match (open.take(), line.trim_start().strip_prefix("```")) {
                (None, None) => text.push(line.into()),
                (None, Some(language)) => {
                    let comment = text.last().and_then(|last| last.strip_prefix("<!--")?.strip_suffix("-->"));
                    let mark = comment.map(|comment| comment.trim().to_owned());
                    open =
                        Some((indent, Block { line: number + 2, language: language.into(), mark, lines: Vec::new() }));
                }
                (Some((_, block)), Some("")) => blocks.push(block),
                (Some((at, mut block)), _) => {
                    block.lines.push(line.get(at.min(indent)..).unwrap_or_default().into());
                    open = Some((at, block));
                }
            }
        }
        assert!(open.is_none(), "{name}: a block is not closed");
        Self { name, text, blocks }
    }

    /// Returns the targets of all links.
    pub(crate) fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for line in &self.text {
            let without_code: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            let targets = without_code.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target.to_owned()));
        }
        links
    }

    /// Returns the text of all code spans. None of them spans lines.
    pub(crate) fn code_spans(&self) -> impl Iterator<Item = &str> {
        self.text.iter().flat_map(|line| line.split('`').skip(1).step_by(2))
    }

    /// Returns the anchors of all headings, as mdBook and GitHub name them.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let headings = self.text.iter().filter(|line| line.starts_with('#'));
        headings.map(|heading| anchor(heading.trim_start_matches('#').trim())).collect()
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn marks_links_and_anchors_are_found() {
    assert_eq!(anchor("What `on_change` examines"), "what-on_change-examines");
    assert_eq!(anchor("/dev and /run"), "dev-and-run");
    let readme = Document::read(Path::new("README.md"));
    assert!(readme.blocks.iter().any(|block| block.language == "console" && block.mark.is_some()));
    assert!(readme.links().iter().any(|link| link == "ARCHITECTURE.md"));
}
