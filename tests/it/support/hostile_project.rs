//! A project with code that makes pipelines and cannot be trusted.

use std::{fs, path::PathBuf, process::Command};

use super::{
    backends::usable,
    project::{Ended, Project},
};

/// The part of `harmont` that a rendering needs, so that any Python will do.
pub(crate) const HARMONT: &str = r#"
import json
pipelines = []
def pipeline(slug, name=None):
    definition = {"version": "0", "default_image": "host", "graph": {"nodes": [
        {"step": {"key": "a", "cmd": "true"}, "env": {}}],
        "node_holes": [], "edge_property": "directed", "edges": []}}
    pipelines.append({"slug": slug, "name": name, "definition": definition})
def dump_registry_json():
    return json.dumps({"schema_version": "1", "pipelines": pipelines})
"#;

/// A project with untrusted code, and its surroundings.
pub(crate) struct Hostile {
    pub(crate) project: Project,
    /// The user's own files: a home, a package, and a directory in which any new file is a failure.
    pub(crate) around: tempfile::TempDir,
}

impl Hostile {
    /// Makes a project. Prints a note and returns `None` if there is no Python, or no sandbox.
    pub(crate) fn new() -> Option<Self> {
        let around = tempfile::tempdir().unwrap();
        for dir in ["home/.ssh", "home/.config/hm", "packages/harmont", "marks"] {
            fs::create_dir_all(around.path().join(dir)).unwrap();
        }
        fs::write(around.path().join("home/.ssh/id_rsa"), "SECRET-KEY").unwrap();
        fs::write(around.path().join("packages/harmont/__init__.py"), HARMONT).unwrap();
        let hostile = Self { project: Project::new(), around };
        if !usable("python3", python().exists(), "there is no /usr/bin/python3") {
            return None;
        }
        hostile.script("harmont.pipeline('ci')");
        let ended = hostile.pipelines();
        let usable = usable("the sandbox for pipelines", !ended.stderr.contains("no sandbox to render"), &ended.stderr);
        usable.then(|| {
            assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "ci  .hm/*.py\n"), "{}", ended.stderr);
            hostile
        })
    }

    pub(crate) fn script(&self, text: &str) {
        self.project.file(".hm/ci.py", &format!("import harmont, os, sys\n{text}\n"));
    }

    pub(crate) fn hm(&self, args: &[&str]) -> Command {
        let mut hm = self.project.hm(args);
        hm.env("HM_PYTHON", python())
            .env("PYTHONPATH", self.around.path().join("packages"))
            .env("HOME", self.around.path().join("home"))
            // With it, `hm doctor` boots no virtual machine, which these tests do not cover.
            .env("HM_STEP", "/nowhere")
            .env_remove("HM_TRUST");
        hm
    }

    pub(crate) fn pipelines(&self) -> Ended {
        Ended::of(&mut self.hm(&["ls"]))
    }

    /// Returns the output of a script, which must succeed.
    #[track_caller]
    pub(crate) fn prints(&self, text: &str) -> String {
        self.script(&format!("{text}\nharmont.pipeline('ci')"));
        self.pipelines().expect(0).stderr
    }

    /// Returns the marks that code of the project left outside the project.
    pub(crate) fn marks(&self) -> Vec<PathBuf> {
        let marks = fs::read_dir(self.around.path().join("marks")).unwrap();
        marks.map(|mark| mark.unwrap().path()).collect()
    }

    /// Returns Python code that leaves a mark if it can.
    pub(crate) fn marking(&self, name: &str) -> String {
        format!("try:\n    open({:?}, 'w')\nexcept OSError:\n    pass\n", self.around.path().join("marks").join(name))
    }
}

pub(crate) fn python() -> PathBuf {
    "/usr/bin/python3".into()
}

/// Returns Python code that prints what it can read of `paths`.
pub(crate) fn reading(paths: &[String]) -> String {
    format!(
        "for path in {paths:?}:\n    try:\n        text = os.listdir(path) if os.path.isdir(path) else open(path).read()\n        \
         print('read', path, text)\n    except OSError as error:\n        print('no', path)\n"
    )
}
