//! Where pipelines come from: `.hm/*.json` (IR, named after the file), `.hm/*.py` (through harmont), or a file by name.
//!
//! In: the shared [`SourceArgs`]. Out: IR text and the source directory. Does not look into the IR: that is the library's.

mod python;

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use hm_exec::{BackendError, Plan, ir::InvalidPipeline};

use crate::{
    args::{SourceArgs, existing_dir},
    failure::{Failure, Outcome},
};

/// Names that are taken where several pipelines exist and none is named.
const DEFAULT_NAMES: [&str; 2] = ["ci", "default"];

/// A pipeline as it was found, not decoded yet.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    /// The name that selects it.
    pub(crate) name: String,
    /// What people read, where that is something else.
    pub(crate) title: Option<String>,
    /// The v0 IR.
    pub(crate) ir_json: String,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// Where a pipeline came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An IR file.
    File(PathBuf),
    /// `-f -`.
    Stdin,
    /// The `.hm/*.py` files.
    Python,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("stdin"),
            Self::Python => f.write_str(".hm/*.py"),
        }
    }
}

/// A source directory, and what its `.hm/` holds.
#[derive(Debug)]
pub(crate) struct Source {
    /// The directory that steps see.
    pub(crate) dir: PathBuf,
    pub(crate) hm_dir: Option<PathBuf>,
}

impl Source {
    /// Finds the source directory and its `.hm/`, upwards from `dir`, or from where we are, to the root of the git
    /// repository. Outside of one, only the directory itself is looked at: a stray `.hm/` far above is nobody's wish.
    pub(crate) fn locate(dir: Option<&Path>) -> Outcome<Self> {
        let start = existing_dir(dir.unwrap_or(Path::new(".")))?;
        let root = start.ancestors().find(|ancestor| ancestor.join(".git").exists());
        let within = |ancestor: &&Path| root.map_or(*ancestor == start, |root| ancestor.starts_with(root));
        let found = start.ancestors().take_while(within).find(|ancestor| ancestor.join(".hm").is_dir());
        let hm_dir = found.map(|found| found.join(".hm"));
        let dir = match (dir, found) {
            (None, Some(found)) => found.to_owned(),
            _ => start,
        };
        Ok(Self { dir, hm_dir })
    }

    /// Every pipeline of `.hm/`, by name.
    pub(crate) fn list(&self) -> Outcome<Vec<Definition>> {
        let hm_dir = self.hm_dir()?;
        let mut found = Vec::new();
        for path in files(hm_dir, "json")? {
            found.push(read_ir(&path)?);
        }
        let scripts = files(hm_dir, "py")?;
        if !scripts.is_empty() {
            found.extend(python::render(&scripts, &self.dir)?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = found.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Failure::input(format_args!("two pipelines are called `{}`", pair[0].name))
                .details(pair.iter().map(|definition| &definition.origin))
                .hint("rename one of them"));
        }
        Ok(found)
    }

    /// The pipeline called `name`, or the one that needs no name. `NAME.json` is found without starting Python.
    fn select(&self, name: Option<&str>) -> Outcome<Definition> {
        let hm_dir = self.hm_dir()?;
        if let Some(path) = name.map(|name| hm_dir.join(format!("{name}.json")))
            && path.parent() == Some(hm_dir)
            && path.is_file()
        {
            return read_ir(&path);
        }
        let mut known = self.list()?;
        let names: Vec<String> = known.iter().map(|definition| definition.name.clone()).collect();
        let at = match name {
            Some(name) => names.iter().position(|known| known == name),
            None if known.len() == 1 => Some(0),
            None => DEFAULT_NAMES.iter().find_map(|default| names.iter().position(|known| known == default)),
        };
        match (at, name) {
            (Some(at), _) => Ok(known.swap_remove(at)),
            (None, _) if names.is_empty() => {
                Err(Failure::input(format_args!("there is no pipeline in {}", hm_dir.display()))
                    .hint("put NAME.json (v0 IR) or a Python file that uses harmont there"))
            }
            (None, Some(name)) => {
                let failure = Failure::input(format_args!("there is no pipeline `{name}` in {}", hm_dir.display()));
                let known = names.join(", ");
                Err(match nearest(name, &names) {
                    Some(near) => failure.hint(format_args!("did you mean `{near}`? (known: {known})")),
                    None => failure.hint(format_args!("known: {known}")),
                })
            }
            (None, None) => Err(Failure::input("there are several pipelines, and none is called `ci` or `default`")
                .details(&names)
                .hint("name one, as in `hm run NAME`")),
        }
    }

    fn hm_dir(&self) -> Outcome<&Path> {
        self.hm_dir.as_deref().ok_or_else(|| {
            Failure::input(format_args!("there is no directory .hm in {} or above it", self.dir.display()))
                .hint("say where the source is with `-d DIR`, or name an IR file with `-f IR.json`")
        })
    }
}

impl Definition {
    /// Why a backend does not run it.
    pub(crate) fn refused(&self, error: BackendError) -> Failure {
        match error {
            BackendError::Invalid(invalid) => self.invalid(&invalid),
            other => other.into(),
        }
    }

    /// What is wrong with it.
    pub(crate) fn invalid(&self, invalid: &InvalidPipeline) -> Failure {
        Failure::input(format_args!("pipeline `{}` ({}) is invalid", self.name, self.origin))
            .details(invalid.problems())
    }
}

/// The Python that renders pipelines: `$HM_PYTHON`, or `python3`.
pub(crate) fn python() -> OsString {
    env::var_os("HM_PYTHON").unwrap_or_else(|| "python3".into())
}

/// Decodes and checks a definition.
pub(crate) fn parse(definition: &Definition) -> Outcome<Plan> {
    Plan::parse(&*definition.ir_json).map_err(|invalid| definition.invalid(&invalid))
}

/// Finds the pipeline that the arguments mean, and its source directory.
pub(crate) fn find(args: &SourceArgs) -> Outcome<(Definition, PathBuf)> {
    match &args.file {
        Some(file) => {
            let dir = existing_dir(args.dir.as_deref().unwrap_or(Path::new(".")))?;
            let definition = if file == Path::new("-") { read_stdin()? } else { read_ir(file)? };
            Ok((definition, dir))
        }
        None => {
            let source = Source::locate(args.dir.as_deref())?;
            Ok((source.select(args.pipeline.as_deref())?, source.dir))
        }
    }
}

fn read_ir(path: &Path) -> Outcome<Definition> {
    let ir_json = fs::read_to_string(path)
        .map_err(|error| Failure::input(format_args!("failed to read {}", path.display())).because(error))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Definition { name, title: None, ir_json, origin: Origin::File(path.to_owned()) })
}

fn read_stdin() -> Outcome<Definition> {
    let mut ir_json = String::new();
    io::stdin()
        .read_to_string(&mut ir_json)
        .map_err(|error| Failure::input("failed to read the pipeline from stdin").because(error))?;
    Ok(Definition { name: "stdin".into(), title: None, ir_json, origin: Origin::Stdin })
}

/// The files in `dir` that end in `.extension`, by name; those that start with `_` or `.` are helpers.
fn files(dir: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
    let failed =
        |error| Failure::input(format_args!("failed to list {}", dir.display())).because(anyhow::Error::from(error));
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|name| matches!(name.as_encoded_bytes()[0], b'_' | b'.'));
        if !hidden && path.extension().is_some_and(|found| found == extension) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The known name that is most like `name`, where one is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let likeness = known.iter().map(|known| (strsim::jaro_winkler(name, known), known));
    likeness.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name.as_str())
}
