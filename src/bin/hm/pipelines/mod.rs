//! The sources of pipelines: `.hm/*.json` (IR, named after the file), `.hm/*.py`, `.hm/*.ts` and `.hm/*.mts`
//! (through harmont), or a file that the user names.
//!
//! Input: the shared [`SourceArgs`]. Output: IR text and the source directory. The library decodes the IR,
//! not this module.

mod bundled;
mod envelope;
mod environment;
pub(crate) mod harmont_wheel;
pub(crate) mod interpreter;
mod kept;
mod python;
pub(crate) mod rendering;
mod typescript;

use std::{
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use self::kept::Kept;
pub(crate) use self::kept::RenderCache;
use hm_exec::{
    BackendError, Plan,
    ir::{CommandStep, InvalidPipeline},
    plan::BindOptions,
    project::{PIPELINE_BYTES, ProjectDir, ProjectFileErrorKind, checkout, has_only_outputs, is_own},
    quote::operands,
};

use crate::{
    args::{SourceArgs, existing_dir},
    failure::{Failure, Outcome},
    trust::{self, Permission},
};

/// Names that are used if several pipelines exist and the user names none.
const DEFAULT_NAMES: [&str; 2] = ["ci", "default"];

/// A pipeline as it was found, not decoded yet.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    /// The name that selects it.
    pub(crate) name: String,
    /// The name that is shown to the user, if it differs.
    pub(crate) title: Option<String>,
    /// What a service needs to know about it.
    pub(crate) discovery: Discovery,
    /// The v0 IR.
    pub(crate) ir_json: String,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// What the discovery envelope has about a pipeline besides its IR, as the DSL wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Discovery {
    pub(crate) name: Option<String>,
    /// Whether builds may be started by hand.
    pub(crate) allow_manual: bool,
    /// The events that start builds, as a list in JSON.
    pub(crate) triggers: String,
}

/// Where a pipeline came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An IR file of the project.
    File(PathBuf),
    /// An IR file outside of the project, which the user named.
    Given(PathBuf),
    /// `-f -`.
    Stdin,
    /// The `.hm/*.py` files.
    Python,
    /// The `.hm/*.ts` and `.hm/*.mts` files.
    TypeScript,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Given(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("stdin"),
            Self::Python => f.write_str(".hm/*.py"),
            Self::TypeScript => f.write_str(".hm/*.ts"),
        }
    }
}

impl Origin {
    /// Returns whether this comes from the checkout's author. If not, the user gave it.
    pub(crate) fn is_projects(&self) -> bool {
        match self {
            Self::File(_) | Self::Python | Self::TypeScript => true,
            Self::Given(_) | Self::Stdin => false,
        }
    }
}

/// A pipeline that was found, and where.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) definition: Definition,
    /// The directory that steps see.
    pub(crate) dir: PathBuf,
    /// The directory that contains `.hm`.
    pub(crate) project: ProjectDir,
}

impl Found {
    /// Returns what the pipeline requests beyond the sandbox: nothing if the user gave it.
    pub(crate) fn permissions(&self, plan: &Plan, options: &BindOptions) -> Vec<Permission> {
        if self.definition.origin.is_projects() {
            trust::of_plan(plan, options, self.project.path())
        } else {
            Vec::new()
        }
    }
}

/// A source directory, and its `.hm/`.
#[derive(Debug)]
pub(crate) struct Source {
    /// The directory that steps see.
    pub(crate) dir: PathBuf,
    pub(crate) hm_dir: Option<PathBuf>,
    /// The repository that contains the source. Nothing in it is run outside of a sandbox.
    pub(crate) checkout: PathBuf,
    /// Whether nothing may be downloaded to render pipelines.
    pub(crate) offline: bool,
    /// Which earlier renderings are used.
    pub(crate) cache: RenderCache,
}

impl Source {
    /// Finds the source directory and its `.hm/`, upwards from `dir`, or from the working directory, to the
    /// root of the git repository. Outside of a repository, only the directory itself is searched: a stray
    /// `.hm/` far above is unlikely to be intended.
    pub(crate) fn locate(dir: Option<&Path>) -> Outcome<Self> {
        let start = existing_dir(dir.unwrap_or(Path::new(".")))?;
        // A directory above that another user owns is not what this user means.
        let root = start.ancestors().find(|ancestor| is_own(&ancestor.join(".git"), &start));
        let within = |ancestor: &&Path| root.map_or(*ancestor == start, |root| ancestor.starts_with(root));
        let found = start.ancestors().take_while(within).find(|ancestor| {
            let hm_dir = ancestor.join(".hm");
            hm_dir.is_dir() && (*ancestor == start || is_own(&hm_dir, &start)) && !has_only_outputs(&hm_dir)
        });
        let hm_dir = found.map(|found| found.join(".hm"));
        let checkout = checkout(&start).unwrap_or_else(|| found.unwrap_or(&start).to_owned());
        let dir = match (dir, found) {
            (None, Some(found)) => found.to_owned(),
            _ => start,
        };
        Ok(Self { dir, hm_dir, checkout, offline: false, cache: RenderCache::default() })
    }

    /// Returns the source that the arguments name. If they name a file, no `.hm` above the directory is
    /// searched for.
    pub(crate) fn of(args: &SourceArgs) -> Outcome<Self> {
        match &args.file {
            Some(_) => {
                let dir = existing_dir(args.dir.as_deref().unwrap_or(Path::new(".")))?;
                Ok(Self {
                    checkout: checkout(&dir).unwrap_or_else(|| dir.clone()),
                    dir,
                    hm_dir: None,
                    offline: args.offline,
                    cache: RenderCache::default(),
                })
            }
            None => Ok(Self { offline: args.offline, ..Self::locate(args.dir.as_deref())? }),
        }
    }

    /// Returns the directory to which the user's consent applies: that of `.hm`, else the source directory.
    pub(crate) fn root(&self) -> &Path {
        self.hm_dir.as_deref().and_then(Path::parent).unwrap_or(&self.dir)
    }

    /// Opens [`root`](Self::root) to read its files.
    pub(crate) fn project(&self) -> Outcome<ProjectDir> {
        Ok(ProjectDir::open(self.root())?)
    }

    /// Returns every pipeline of `.hm/`, by name.
    pub(crate) fn list(&self) -> Outcome<Vec<Definition>> {
        self.list_while(|| ())
    }

    /// Returns the pipelines of `.hm/` that are IR files. No program runs for that.
    pub(crate) fn ir_files(&self) -> Outcome<Vec<Definition>> {
        self.hm_dir()?;
        let project = self.project()?;
        files(&project, "json")?.iter().map(|path| read_ir(&project, path)).collect()
    }

    /// Returns every pipeline of `.hm/`, by name. Calls `meanwhile` before other programs render pipelines.
    fn list_while(&self, meanwhile: impl FnOnce()) -> Outcome<Vec<Definition>> {
        let hm_dir = self.hm_dir()?;
        let project = self.project()?;
        let mut found = self.ir_files()?;
        let dir = hm_dir.parent().unwrap_or(hm_dir);
        let (py, ts) = (scripts(&project, &["py"])?, scripts(&project, &["ts", "mts"])?);
        let has_scripts = !py.is_empty() || !ts.is_empty();
        if has_scripts {
            meanwhile();
        }
        let kept = has_scripts.then(|| Kept::open(self.cache, &project)).flatten();
        let scripted = python::Project {
            dir,
            source: &self.dir,
            checkout: &self.checkout,
            offline: self.offline,
            kept: kept.as_ref(),
        };
        if !py.is_empty() {
            found.extend(python::render(&py, &scripted)?);
        }
        if !ts.is_empty() {
            found.extend(typescript::render(&ts, &scripted)?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = found.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Failure::input(format_args!("two pipelines are named `{}`", pair[0].name))
                .details(pair.iter().map(|definition| &definition.origin))
                .hint("rename one of them"));
        }
        Ok(found)
    }

    /// Returns the pipeline called `name`, or the one that needs no name. `NAME.json` is found without
    /// starting Python.
    fn select(&self, name: Option<&str>, meanwhile: impl FnOnce()) -> Outcome<Definition> {
        let hm_dir = self.hm_dir()?;
        if let Some(path) = name.map(|name| hm_dir.join(format!("{name}.json")))
            && path.parent() == Some(hm_dir)
        {
            let project = self.project()?;
            match project.open_file(&path, PIPELINE_BYTES) {
                Err(error) if error.kind() == ProjectFileErrorKind::Missing => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return read_ir(&project, &path),
            }
        }
        let mut known = self.list_while(meanwhile)?;
        let names: Vec<String> = known.iter().map(|definition| definition.name.clone()).collect();
        let at = match name {
            Some(name) => names.iter().position(|known| known == name),
            None if known.len() == 1 => Some(0),
            None => DEFAULT_NAMES.iter().find_map(|default| names.iter().position(|known| known == default)),
        };
        match (at, name) {
            (Some(at), _) => Ok(known.swap_remove(at)),
            (None, _) if names.is_empty() => Err(Failure::input(format_args!("no pipelines in {}", hm_dir.display()))
                .hint(match self.project().and_then(|project| scripts(&project, &["py", "ts", "mts"])) {
                    Ok(files) if !files.is_empty() => {
                        "its files register none: use `@hm.pipeline(\"NAME\")` in Python, `export default` in TypeScript"
                    }
                    _ => "run `hm init` to create one",
                })),
            (None, Some(name)) => {
                let failure = Failure::input(format_args!("no pipeline named `{name}` in {}", hm_dir.display()));
                let of_step = known.iter().find(|definition| definition.has_step(name));
                let known = names.join(", ");
                Err(match (of_step, nearest(name, &names)) {
                    (Some(Definition { name: pipeline, .. }), _) => failure.hint(format_args!(
                        "it is a step of pipeline `{pipeline}`: name both, as in `hm run {}`",
                        operands([&**pipeline, name])
                    )),
                    (None, Some(near)) => failure.hint(format_args!("did you mean `{near}`? (pipelines: {known})")),
                    (None, None) => failure.hint(format_args!("pipelines: {known}")),
                })
            }
            (None, None) => Err(Failure::input("several pipelines, and none is named `ci` or `default`")
                .details(&names)
                .hint("choose one, as in `hm run NAME`")),
        }
    }

    fn hm_dir(&self) -> Outcome<&Path> {
        self.hm_dir.as_deref().ok_or_else(|| {
            let dir = self.dir.display();
            // One outside of the repository is rarely intended, and may belong to another user.
            match self.dir.ancestors().skip(1).find(|above| above.join(".hm").is_dir()) {
                Some(above) => Failure::input(format_args!(
                    "no directory .hm in {dir}; that of {} is not in a git repository with it",
                    above.display()
                ))
                .hint(format_args!("to use that one, pass `-d {}`, or run `git init` there", above.display())),
                None => Failure::input(format_args!("no directory .hm in {dir} or above it")).hint(
                    "run `hm init` to create a pipeline, set the source directory with `-d DIR`, or pass an IR file \
                     with `-f IR.json`",
                ),
            }
        })
    }
}

impl Discovery {
    /// Returns what is known of a pipeline that is an IR file: nothing starts it but a user.
    fn of_file(name: &str) -> Self {
        Self { name: Some(name.to_owned()), allow_manual: true, triggers: Self::no_triggers() }
    }

    fn no_triggers() -> String {
        "[]".to_owned()
    }
}

impl Definition {
    /// Returns whether a step has this key or label. An invalid pipeline has none.
    fn has_step(&self, name: &str) -> bool {
        let is_named = |step: &CommandStep| *step.key == *name || step.label.as_deref() == Some(name);
        parse(self).is_ok_and(|plan| plan.pipeline().nodes.iter().any(|node| is_named(&node.step)))
    }

    /// Returns the failure for a backend's refusal to run it.
    pub(crate) fn refused(&self, error: BackendError) -> Failure {
        match error {
            BackendError::Invalid(invalid) => self.invalid(&invalid),
            other => other.into(),
        }
    }

    /// Returns the failure for an invalid pipeline.
    pub(crate) fn invalid(&self, invalid: &InvalidPipeline) -> Failure {
        Failure::input(format_args!("pipeline `{}` ({}) is invalid", self.name, self.origin))
            .details(invalid.problems())
    }
}

/// Decodes and validates a definition.
pub(crate) fn parse(definition: &Definition) -> Outcome<Plan> {
    Plan::parse(&*definition.ir_json).map_err(|invalid| definition.invalid(&invalid))
}

/// Finds the pipeline that the arguments name, and its source directory.
pub(crate) fn find(args: &SourceArgs) -> Outcome<Found> {
    find_with(args, RenderCache::default())
}

/// Does what [`find`] does, with a choice of earlier renderings.
pub(crate) fn find_with(args: &SourceArgs, cache: RenderCache) -> Outcome<Found> {
    find_while(args, cache, |_, _| ())
}

/// Finds the pipeline that the arguments name. Calls `meanwhile` with the source directory and the project
/// before another program renders pipelines, which takes some time and cannot write to either.
pub(crate) fn find_while(
    args: &SourceArgs,
    cache: RenderCache,
    meanwhile: impl FnOnce(&Path, &ProjectDir),
) -> Outcome<Found> {
    let source = Source { cache, ..Source::of(args)? };
    let project = source.project()?;
    // Without a sandbox, which takes this consent, pipelines may write source files while they are rendered.
    let is_confined = !trust::variable_trusts().unwrap_or(true);
    let meanwhile = || {
        if is_confined {
            meanwhile(&source.dir, &project)
        }
    };
    let definition = match &args.file {
        Some(file) if file == Path::new("-") => read_stdin()?,
        Some(file) => read_given(file, &source.checkout)?,
        None => source.select(args.pipeline.as_deref(), meanwhile)?,
    };
    Ok(Found { definition, dir: source.dir, project })
}

/// Reads a file of the project.
fn read_ir(project: &ProjectDir, path: &Path) -> Outcome<Definition> {
    let ir_json = project.read_text(path, PIPELINE_BYTES)?;
    Ok(definition(Origin::File(project.path().join(path)), path, ir_json))
}

/// Reads a file that the user named. If it is in the `checkout`, it is read with the same precautions as the
/// project's files; elsewhere without them, since it may be a pipe.
fn read_given(path: &Path, checkout: &Path) -> Outcome<Definition> {
    let failed =
        |error: anyhow::Error| Failure::input(format_args!("failed to read {}", path.display())).because(error);
    let absolute = std::path::absolute(path).map_err(|error| failed(error.into()))?;
    // Both the path as given and the path that its links lead to.
    let named = absolute.parent().and_then(|parent| parent.canonicalize().ok());
    let named = named.zip(absolute.file_name()).map(|(parent, name)| parent.join(name));
    let within = [named, absolute.canonicalize().ok()].into_iter().flatten().find(|place| place.starts_with(checkout));
    if let Some(place) = within {
        let text = ProjectDir::open(checkout).and_then(|project| project.read_text(place, PIPELINE_BYTES));
        let text = text.map_err(|error| failed(anyhow::anyhow!("{}", error.reason())))?;
        return Ok(definition(Origin::File(path.to_owned()), path, text));
    }
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| failed(error.into()))?;
    file.take(PIPELINE_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.into()))?;
    if text.len() as u64 > PIPELINE_BYTES {
        return Err(failed(anyhow::anyhow!("the file is larger than {} MiB", PIPELINE_BYTES >> 20)));
    }
    Ok(definition(Origin::Given(path.to_owned()), path, text))
}

fn definition(origin: Origin, path: &Path, ir_json: String) -> Definition {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Definition { discovery: Discovery::of_file(&name), name, title: None, ir_json, origin }
}

fn read_stdin() -> Outcome<Definition> {
    let mut ir_json = String::new();
    io::stdin()
        .take(PIPELINE_BYTES + 1)
        .read_to_string(&mut ir_json)
        .map_err(|error| Failure::input("failed to read the pipeline from stdin").because(error))?;
    if ir_json.len() as u64 > PIPELINE_BYTES {
        return Err(Failure::input(format_args!("the pipeline on stdin is larger than {} MiB", PIPELINE_BYTES >> 20)));
    }
    Ok(definition(Origin::Stdin, Path::new("stdin"), ir_json))
}

/// Returns the files of the project's `.hm` that end in `.extension`, by name. Files that start with `_` or
/// `.` are helpers and left out.
fn files(project: &ProjectDir, extension: &str) -> Outcome<Vec<PathBuf>> {
    let names = project.names(".hm")?.into_iter().map(|name| Path::new(".hm").join(name));
    let is_wanted = |path: &PathBuf| {
        let hidden = path.file_name().is_none_or(|name| matches!(name.as_encoded_bytes()[0], b'_' | b'.'));
        !hidden && path.extension().is_some_and(|found| found == extension)
    };
    Ok(names.filter(is_wanted).collect())
}

/// Returns the absolute paths of the project's files that end in one of `extensions`.
fn scripts(project: &ProjectDir, extensions: &[&str]) -> Outcome<Vec<PathBuf>> {
    let mut scripts = Vec::new();
    for extension in extensions {
        scripts.extend(files(project, extension)?.into_iter().filter(|file| !is_declaration(file)));
    }
    for script in &scripts {
        // The file is read by another program, which would block on a FIFO.
        project.open_file(script, PIPELINE_BYTES)?;
    }
    scripts.sort();
    Ok(scripts.iter().map(|script| project.path().join(script)).collect())
}

/// Returns whether a file has types alone, as `NAME.d.ts` has.
fn is_declaration(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem.as_encoded_bytes().ends_with(b".d"))
}

/// Returns the known name that is most similar to `name`, if any is similar enough.
pub(crate) fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let likeness = known.iter().map(|known| (strsim::jaro_winkler(name, known), known));
    likeness.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name.as_str())
}
