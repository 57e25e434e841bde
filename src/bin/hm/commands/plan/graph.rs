//! A plan as a graph, in the languages of Graphviz and Mermaid.
//!
//! A solid edge leads to a step that starts from its parent's files, a dashed edge to one that only waits.

use clap::ValueEnum;

use super::{Shown, ShownStep};

/// The language of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum GraphFormat {
    /// For Graphviz, as in `hm plan --graph dot | dot -Tsvg`
    Dot,
    /// For Mermaid, which GitHub and GitLab draw in Markdown
    Mermaid,
}

/// Returns the text of the graph.
pub(super) fn text(plan: &Shown<'_>, format: GraphFormat) -> String {
    let mut out = match format {
        GraphFormat::Dot => format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", dot_string(plan.pipeline)),
        GraphFormat::Mermaid => "flowchart LR\n".into(),
    };
    for (index, step) in plan.steps.iter().enumerate() {
        out.push_str(&match format {
            GraphFormat::Dot => format!("  s{index} [label={}];\n", dot_string(&name(step))),
            GraphFormat::Mermaid => format!("  s{index}[\"{}\"]\n", mermaid_text(&name(step))),
        });
    }
    let index = |key: &str| plan.steps.iter().position(|step| step.key == key);
    for (to, step) in plan.steps.iter().enumerate() {
        let parents = step.builds_in.iter().map(|key| (*key, true));
        for (key, is_solid) in parents.chain(step.depends_on.iter().map(|key| (*key, false))) {
            let Some(from) = index(key) else { continue };
            out.push_str(&match (format, is_solid) {
                (GraphFormat::Dot, true) => format!("  s{from} -> s{to};\n"),
                (GraphFormat::Dot, false) => format!("  s{from} -> s{to} [style=dashed];\n"),
                (GraphFormat::Mermaid, true) => format!("  s{from} --> s{to}\n"),
                (GraphFormat::Mermaid, false) => format!("  s{from} -.-> s{to}\n"),
            });
        }
    }
    if format == GraphFormat::Dot {
        out.push_str("}\n");
    }
    out
}

fn name(step: &ShownStep<'_>) -> String {
    step.label.map_or_else(|| step.key.to_owned(), |label| format!("{label} ({})", step.key))
}

/// Returns a quoted string of Graphviz.
fn dot_string(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Escapes the text of a node of Mermaid, which may have entities of HTML.
fn mermaid_text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            c if c.is_control() => out.push(' '),
            c if c.is_alphanumeric() || matches!(c, ' ' | '-' | '_' | '.' | '/' | ':' | ',' | '(' | ')') => out.push(c),
            c => out.push_str(&format!("#{};", u32::from(c))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_nodes() {
        assert_eq!(dot_string("a\"]; b\\\n"), "\"a\\\"]; b\\\\ \"");
        assert_eq!(mermaid_text("a\"] --> <b>"), "a#34;#93; --#62; #60;b#62;");
        assert_eq!(mermaid_text("Unit tests (unit)"), "Unit tests (unit)");
    }
}
