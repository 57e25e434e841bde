//! Pipelines in TypeScript, with the package `@harmont/hm`.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use hm_exec::cache::check_traces;
use serde_json::{Value, json};

use crate::support::{
    backends::{runs, usable},
    project::{Ended, Project, wait_for},
};

/// A stand-in for the package with the functions that these tests use. It has what the real one has in its
/// own source: types, a private member, and imports of `.js` files that are `.ts` files.
const INDEX: &str = r#"
export { step, type Step } from "./step.js";
interface Definition { readonly slug: string; readonly steps: readonly string[] }
export function renderEnvelope(definitions: readonly Definition[], options?: { basePath?: string }): string {
  const node = (cmd: string, at: number) => ({ step: { key: `step-${at}`, cmd, image: "host" }, env: {} });
  const pipelines = definitions.map((it) => ({
    slug: it.slug, name: it.slug, allow_manual: true, triggers: [],
    definition: { version: "0", graph: {
      nodes: it.steps.map(node), node_holes: [], edge_property: "directed", edges: [] } },
  }));
  return JSON.stringify({ schema_version: "1", pipelines });
}
"#;

const STEP: &str = "export type Step = string;\nexport class Own { private readonly x: number = 1; }\n\
                    export const step = (cmd: string): Step => cmd;\n";

const PIPELINE: &str = r#"import { step, type Step } from "@harmont/hm";
import { tool } from "@harmont/hm/toolchains";
import { more } from "./_more.js";
console.log("printed by the file");
enum Kind { Fast = "fast" }
const steps: Step[] = [step(`echo ${Kind.Fast}`), step(tool), more];
export default [{ slug: "ci", steps }];
"#;

/// Returns a Node that can render pipelines. If there is none, prints a note and returns `None`.
fn node() -> Option<PathBuf> {
    let candidates = [env::var_os("HM_NODE").unwrap_or_default().into(), PathBuf::from("node")];
    let is_recent = |node: &PathBuf| {
        let mut check = Command::new(node);
        check.args(["-e", "process.exit(require('module').registerHooks ? 0 : 1)"]);
        check.output().is_ok_and(|output| output.status.success())
    };
    let found = candidates.into_iter().filter(|node| !node.as_os_str().is_empty()).find(is_recent);
    usable("node", found.is_some(), "no Node 22.15 or later: install npm's package `node`, or set HM_NODE")
        .then_some(())?;
    found
}

/// Returns a Bun: one in npm's directory of Node's, or in `PATH`. If there is none, prints a note and returns
/// `None`.
fn bun() -> Option<PathBuf> {
    let beside_node = PathBuf::from(env::var_os("HM_NODE").unwrap_or_default()).with_file_name("bun");
    let found = [beside_node, PathBuf::from("bun")].into_iter().find(|bun| runs(bun));
    usable("bun", found.is_some(), "install npm's package `bun`").then_some(())?;
    let answer = Command::new(found?).args(["-p", "process.execPath"]).output().unwrap();
    Some(PathBuf::from(String::from_utf8(answer.stdout).unwrap().trim_end()))
}

/// Returns the programs that render pipelines here.
fn programs() -> Vec<PathBuf> {
    node().into_iter().chain(bun()).collect()
}

/// Creates a project with the pipeline, and the package outside of it.
fn project() -> (Project, PathBuf) {
    let project = Project::new();
    project.file(".hm/ci.ts", PIPELINE);
    project.file(".hm/_more.ts", "export const more: string = 'echo more';\n");
    project.file(".hm/ci.d.ts", "this is not read");
    let package = project.dir.with_file_name("harmont-ts");
    for (name, text) in
        [("index.ts", INDEX), ("step.ts", STEP), ("toolchains/index.ts", "export const tool: string = 'echo tool';\n")]
    {
        let path = package.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (project, package)
}

#[test]
fn an_unchanged_typescript_pipeline_starts_no_node() {
    for node in programs() {
        let (project, package) = project();
        project.file(".hm/hm.toml", "[cache]\nmode = \"auto\"\n");
        project.file("unread/a.ts", "");
        project
            .file(".hm/_more.ts", "console.log('token', process.hrtime.bigint());\nexport const more = 'echo more';\n");
        let render = || {
            let mut hm = project.hm(&["render"]);
            Ended::of(hm.env("HM_NODE", &node).env("HM_HARMONT_TS", &package)).expect(0).stderr
        };
        let traces = check_traces();
        if !usable("traces", traces.is_ok(), &traces.err().unwrap_or_default()) {
            return;
        }
        let found = wait_for_equal(render);
        assert!(found.contains("token "), "{found}");
        project.file("unread/b.ts", "");
        assert_eq!(render(), found, "what is not read");
        project.file(".hm/_more.ts", "console.log('token', 2);\nexport const more = 'echo more';\n");
        assert!(render().contains("token 2\n"));
    }
}

/// Renders until two renderings print the same.
fn wait_for_equal(render: impl Fn() -> String) -> String {
    let mut last = render();
    let is_equal = wait_for(|| {
        let next = render();
        let is_equal = next == last;
        last = next;
        is_equal
    });
    assert!(is_equal, "never found: {last}");
    last
}

#[test]
fn a_typescript_pipeline_is_rendered_and_what_it_prints_does_no_harm() {
    for node in programs() {
        let (project, package) = project();
        let before = project.listing();
        let mut hm = project.hm(&["pipelines"]);
        let ended = Ended::of(hm.env("HM_NODE", &node).env("HM_HARMONT_TS", &package)).expect(0);
        let envelope: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(envelope["pipelines"][0]["slug"], "ci");
        let nodes = envelope["pipelines"][0]["definition"]["graph"]["nodes"].as_array().unwrap();
        let commands: Vec<_> = nodes.iter().map(|node| node["step"]["cmd"].as_str().unwrap()).collect();
        assert_eq!(commands, ["echo fast", "echo tool", "echo more"]);
        assert_eq!(ended.stderr, "printed by the file\n");
        let mut hm = project.hm(&["run", "--runner", "process"]);
        let ended = Ended::of(hm.env("HM_NODE", &node).env("HM_HARMONT_TS", &package)).expect(0);
        assert!(ended.stdout.contains("| more"), "{}", ended.stdout);
        assert_eq!(project.listing(), before, "nothing is written next to the files");

        // The project's own package comes first.
        project.file(
            "node_modules/@harmont/hm/package.json",
            &json!({
                "name": "@harmont/hm", "type": "module", "exports": { ".": "./index.js", "./toolchains": "./tools.js" },
            })
            .to_string(),
        );
        project.file(
            "node_modules/@harmont/hm/index.js",
            "export const step = (cmd) => cmd + ' own';\n\
            export const renderEnvelope = (all) => JSON.stringify({ schema_version: '1', pipelines: all.map((it) => ({ \
            slug: it.slug, definition: { it: it.steps } })) });\n",
        );
        project.file("node_modules/@harmont/hm/tools.js", "export const tool = 'own';\n");
        let mut hm = project.hm(&["pipelines"]);
        let ended = Ended::of(hm.env("HM_NODE", &node).env_remove("HM_HARMONT_TS")).expect(0);
        assert!(ended.stdout.contains(r#"{"it":["echo fast own","own own","echo more"]}"#), "{}", ended.stdout);
    }
}

#[test]
fn a_package_that_can_only_be_imported_is_found_and_variables_can_be_set() {
    for node in programs() {
        let (project, _) = project();
        let dir = "node_modules/@harmont/hm";
        let manifest = json!({ "type": "module", "exports": { ".": { "import": "./index.js" } } });
        project.file(&format!("{dir}/package.json"), &manifest.to_string());
        // Each copy of the package knows the steps that it made.
        let index = "const made = []; export const step = (cmd) => { made.push(cmd); return cmd; };\n\
                     export const renderEnvelope = () => JSON.stringify({ schema_version: '1', pipelines: [\n\
                     { slug: 'ci', definition: { it: made } }] });\n";
        project.file(&format!("{dir}/index.js"), index);
        let pipeline = "import { step } from '@harmont/hm';\nfor (const home of ['a', 'b']) process.env.HOME = home;\n\
                        export default [step(`echo ${process.env.HOME}`)];\n";
        project.file(".hm/ci.ts", pipeline);
        let mut hm = project.hm(&["pipelines"]);
        let ended = Ended::of(hm.env("HM_NODE", &node).env_remove("HM_HARMONT_TS")).expect(0);
        assert!(ended.stdout.contains(r#"{"it":["echo b"]}"#), "{}", ended.stdout);
    }
}

#[track_caller]
fn assert_errors(program: &Path, errors: &[(&str, &str)]) {
    for (text, said) in errors {
        let (project, package) = project();
        project.file(".hm/ci.ts", text);
        let mut hm = project.hm(&["plan"]);
        let ended = Ended::of(hm.env("HM_NODE", program).env("HM_HARMONT_TS", &package)).expect(2);
        assert!(ended.stderr.starts_with(&format!("error: {said}")), "{}", ended.stderr);
        assert!(ended.stderr.contains("`hm plan`"), "{}", ended.stderr);
    }
}

/// Errors that both programs report in the same words.
const ERRORS: [(&str, &str); 3] = [
    ("const x: number = 1;\nthrow new RangeError('no');\n", ".hm/ci.ts:2: RangeError: no\n  - throw new RangeError"),
    (
        "throw new Error('first', { cause: new AggregateError([new Error('second \\ud800'), 3]) });\n",
        ".hm/ci.ts:1: Error: first: second \u{fffd}\n",
    ),
    ("import { readFileSync } from 'node:fs';\nreadFileSync('/root/.ssh/id');\n", ".hm/ci.ts:2: Error: E"),
];

#[test]
fn errors_in_typescript_are_shown_at_their_place() {
    if let Some(node) = node() {
        assert_errors(&node, &ERRORS);
        let errors = [
            ("const x: number = ;\n", ".hm/ci.ts:1: SyntaxError: Expression expected\n  - const x: number = ;\n"),
            ("enum A { B = 1 }\n\nnull.x;\n", ".hm/ci.ts:3: TypeError: Cannot read properties of null"),
            ("const a = 1;\nconst a = 2;\n", ".hm/ci.ts: SyntaxError: Identifier 'a' has already been declared"),
            ("import './_none.js';\n", ".hm/ci.ts: Error: Cannot find module"),
        ];
        assert_errors(&node, &errors);
    }
    if let Some(bun) = bun() {
        assert_errors(&bun, &ERRORS);
        let errors = [
            ("const x: number = ;\n", ".hm/ci.ts:1: SyntaxError: Unexpected ;\n  - const x: number = ;\n"),
            ("enum A { B = 1 }\n\nnull.x;\n", ".hm/ci.ts:3: TypeError: null is not an object"),
            ("const a = 1;\nconst a = 2;\n", ".hm/ci.ts:2: SyntaxError: \"a\" has already been declared"),
            ("import './_none.js';\n", ".hm/ci.ts: Error: Cannot find module"),
        ];
        assert_errors(&bun, &errors);
    }
}

#[test]
fn what_is_missing_is_one_line_with_what_to_do() {
    let (project, package) = project();
    let run = |node: &Path| {
        let mut hm = project.hm(&["plan"]);
        Ended::of(hm.env("HM_NODE", node).env("HM_HARMONT_TS", &package)).expect(2).stderr
    };
    let said = run("/no/such/node".as_ref());
    assert!(said.starts_with("error: failed to start `/no/such/node`, which .hm/ci.ts needs: "), "{said}");
    assert!(said.contains("install Node 22.15 or later, or Bun"), "{said}");
    let old = project.dir.with_file_name("old");
    script(&old.join("node"), TOO_OLD);
    let said = run(&old.join("node"));
    let expected =
        format!("error: `{}` is Node v18.19.0, which is too old for .hm/ci.ts\n", old.join("node").display());
    assert!(said.starts_with(&expected) && said.contains("install Node 22.15 or later, or Bun"), "{said}");
    for node in programs().into_iter().filter(|_| !cfg!(feature = "bundled-dsl")) {
        let mut hm = project.hm(&["plan"]);
        let said = Ended::of(hm.env("HM_NODE", &node).env_remove("HM_HARMONT_TS")).expect(2).stderr;
        assert!(said.starts_with("error: the project does not have the package `@harmont/hm`"), "{said}");
        assert!(said.contains("HM_HARMONT_TS"), "{said}");
    }
}

/// Answers as the script does on a Node without hooks. It stands in for a program of its own.
const TOO_OLD: &str = r#"[ "$1" = -p ] || printf '{"too_old":"Node v18.19.0"}' >&3; [ "$1" != -p ] || echo "$0""#;

/// Writes a shell script.
fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn bun_renders_if_node_is_missing_or_too_old() {
    let Some(bun) = bun() else { return };
    let (project, package) = project();
    let bin = project.dir.with_file_name("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(bun, bin.join("bun")).unwrap();
    let path = env::join_paths([bin.clone(), "/bin".into()]).unwrap();
    let run = |path: &OsStr| {
        let mut hm = project.hm(&["pipelines"]);
        Ended::of(hm.env_remove("HM_NODE").env("PATH", path).env("HM_HARMONT_TS", &package))
    };
    // A directory without any Node of this machine's.
    let only_bun = bin.clone().into_os_string();
    assert!(run(&only_bun).expect(0).stdout.contains("echo tool"));
    script(&bin.join("node"), TOO_OLD);
    assert!(run(&path).expect(0).stdout.contains("echo tool"));
    fs::remove_file(bin.join("bun")).unwrap();
    let said = run(&only_bun).expect(2).stderr;
    assert!(said.starts_with("error: `node` is Node v18.19.0, which is too old"), "{said}");
}

/// Stops the clock, on which the keys of `ttl` policies depend. It is loaded before the pipeline.
#[cfg(feature = "bundled-dsl")]
const CLOCK: &str = "Date.now = () => 1_800_000_000_000;\nexport default [];\n";

/// The envelopes in the fixtures are what the published engine printed for the same files.
#[cfg(feature = "bundled-dsl")]
#[test]
fn pipelines_render_with_nothing_but_a_program_to_the_bytes_of_the_published_engine() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/typescript");
    let toolchains = fs::read_to_string(fixtures.join("toolchains.ts")).unwrap();
    for program in programs() {
        for kind in ["js", "nextjs", "toolchains"] {
            let project = Project::new();
            if kind == "toolchains" {
                project.file(".hm/ci.ts", &toolchains);
            } else {
                project.file("package.json", "{}\n");
                Ended::of(&mut project.hm(&["init", "-t", kind])).expect(0);
            }
            project.file(".hm/a_clock.ts", CLOCK);
            let mut hm = project.hm(&["pipelines"]);
            let ended = Ended::of(hm.env("HM_NODE", &program).env_remove("HM_HARMONT_TS")).expect(0);
            let expected = fs::read_to_string(fixtures.join(kind).with_extension("json")).unwrap();
            assert_eq!(ended.stdout.trim_end(), expected.trim_end(), "{kind} on {}", program.display());
        }
    }
}

#[test]
fn pipelines_of_both_languages_need_names_of_their_own() {
    for node in programs() {
        let (project, package) = project();
        project.file(".hm/ci.json", &crate::support::project::ir(&[("a", "true", None)]));
        let mut hm = project.hm(&["pipelines"]);
        let ended = Ended::of(hm.env("HM_NODE", &node).env("HM_HARMONT_TS", &package)).expect(2);
        assert!(ended.stderr.contains("two pipelines are named `ci`"), "{}", ended.stderr);
        assert!(ended.stderr.contains(".hm/ci.json") && ended.stderr.contains(".hm/*.ts"), "{}", ended.stderr);
    }
}
