//! The kinds of projects that `hm init` knows: how each is recognised, and its pipeline.

use clap::ValueEnum;

/// A kind of project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    Cmake,
    Elixir,
    Go,
    Js,
    Nextjs,
    Python,
    Rust,
    Zig,
}

impl Kind {
    /// Returns the kinds of which `names`, the entries of a directory, have the marks.
    pub(super) fn detect(names: &[String]) -> Vec<Self> {
        let has = |mark: &str| names.iter().any(|name| name == mark);
        let is_next = ["js", "mjs", "ts"].iter().any(|end| has(&format!("next.config.{end}")));
        let is_marked = |kind: &Self| match kind {
            Self::Js => has("package.json") && !is_next,
            Self::Nextjs => has("package.json") && is_next,
            kind => has(kind.mark()),
        };
        Self::value_variants().iter().copied().filter(is_marked).collect()
    }

    /// Returns the file that projects of this kind have.
    pub(super) fn mark(self) -> &'static str {
        match self {
            Self::Cmake => "CMakeLists.txt",
            Self::Elixir => "mix.exs",
            Self::Go => "go.mod",
            Self::Js | Self::Nextjs => "package.json",
            Self::Python => "pyproject.toml",
            Self::Rust => "Cargo.toml",
            Self::Zig => "build.zig",
        }
    }

    /// Returns the name of the pipeline's file in `.hm/`.
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Js | Self::Nextjs => "ci.ts",
            _ => "ci.py",
        }
    }

    /// Returns the pipeline.
    pub(super) fn pipeline(self) -> &'static str {
        match self {
            Self::Cmake => include_str!("templates/cmake.py"),
            Self::Elixir => include_str!("templates/elixir.py"),
            Self::Go => include_str!("templates/go.py"),
            Self::Js => include_str!("templates/js.ts"),
            Self::Nextjs => include_str!("templates/nextjs.ts"),
            Self::Python => include_str!("templates/python.py"),
            Self::Rust => include_str!("templates/rust.py"),
            Self::Zig => include_str!("templates/zig.py"),
        }
    }
}

/// Returns the names of all kinds, for messages.
pub(super) fn names() -> String {
    let names = Kind::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    names.map(|name| name.get_name().to_owned()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_are_recognised_by_their_files() {
        let detect = |names: &[&str]| Kind::detect(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(detect(&["README.md"]), []);
        assert_eq!(detect(&["src", "Cargo.toml"]), [Kind::Rust]);
        assert_eq!(detect(&["package.json"]), [Kind::Js]);
        assert_eq!(detect(&["package.json", "next.config.mjs"]), [Kind::Nextjs]);
        assert_eq!(detect(&["pyproject.toml", "Cargo.toml", "go.mod"]), [Kind::Go, Kind::Python, Kind::Rust]);
        assert_eq!(names(), "cmake, elixir, go, js, nextjs, python, rust, zig");
    }
}
