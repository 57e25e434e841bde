//! The errors that users can cause: what is typed where, what the answer says, and what it says to do next.

/// What a command must answer.
pub(super) struct Case {
    pub(super) args: &'static [&'static str],
    pub(super) variables: &'static [(&'static str, &'static str)],
    /// Files that are there for this case alone, with their content: in the project, or in the user's home if
    /// they begin with `~/`. Directories end in `/`.
    pub(super) files: &'static [(&'static str, &'static [u8])],
    pub(super) code: i32,
    /// A part of the error, and a part of the next step, which is in a hint, in the error's end, or in clap's
    /// usage.
    pub(super) error: &'static str,
    pub(super) next: &'static str,
}

pub(super) const fn case(args: &'static [&'static str], code: i32, error: &'static str, next: &'static str) -> Case {
    Case { args, variables: &[], files: &[], code, error, next }
}

impl Case {
    const fn with(self, variables: &'static [(&'static str, &'static str)]) -> Self {
        Self { variables, ..self }
    }

    const fn having(self, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { files, ..self }
    }
}

/// A run that would share results through an engine.
const ENGINES_CACHE: &[&str] = &["run", "--remote", "grpc://[::1]:1", "--remote-cache", "read"];

/// In a directory without anything.
pub(super) const EMPTY: &[Case] = &[
    case(&["run"], 2, "no directory .hm in ", "hint: run `hm init` to create a pipeline"),
    case(&["run", "-d", "/nope"], 2, "failed to open directory /nope", "No such file or directory"),
    case(&["run", "-f", "nope.json"], 2, "failed to read nope.json", "no such file or directory"),
    case(&["logs"], 2, "no runs of pipelines in ", "hint: run a pipeline first"),
    case(&["logs", "test"], 2, "no runs of pipelines in ", "set its source directory with `-d DIR`"),
    case(&["shell", "test"], 2, "no runs of pipelines in ", "or name a run, as in `RUN/STEP`"),
    case(&["runs", "ci"], 2, "no runs of pipeline `ci` in this directory", "hint: no pipeline has run here"),
    case(&["init"], 2, "no known kind of project in ", "hint: name one with `-t KIND`"),
    case(&["init"], 2, " has package.json and Cargo.toml", "hint: name the kind of project with `-t KIND`")
        .having(&[("Cargo.toml", b""), ("package.json", b"")]),
    case(&["logs", "ffffffff/test"], 2, "no run with id prefix `ffffffff`", "hint: run `hm runs`"),
    case(&["rnu"], 2, "unrecognized subcommand 'rnu'", "tip: a similar subcommand exists"),
];

/// In a project whose pipeline `ci` has one step `test`, which failed.
pub(super) const PROJECT: &[Case] = &[
    case(&["run", "nope"], 2, "no pipeline named `nope`", "hint: pipelines: ci, fresh, long"),
    case(&["run", "test"], 2, "no pipeline named `test`", "step of pipeline `ci`: name both, as in `hm run ci test`"),
    case(&["run", "c"], 2, "no pipeline named `c`", "hint: "),
    case(&["run", "--runner", "sandbx"], 2, "no runner named `sandbx`", "did you mean `sandbox`?"),
    case(&["plan", "--runner", "docker"], 2, "runner `docker` cannot start from image `host`", "--image host=IMAGE"),
    case(
        &["plan", "--runner", "process", "--image", "host=debian:x"],
        2,
        "runner `process` cannot start from image `debian:x`",
        "remove `--image host=...`",
    ),
    case(&["run", "--image", "x"], 2, "invalid value 'x' for '--image <A=B>'", "expected A=B, as in"),
    case(&["plan", "--image", "host=UPPER:x"], 2, "invalid image name `UPPER:x`", "use a name such as"),
    case(&["plan", "--image", "host=rootfs:/nope"], 2, "cannot use `/nope` as a root filesystem", "no such directory"),
    case(&["plan", "--image", "host=oci:/nope"], 2, "invalid image name `oci:/nope`", "`/nope` does not exist"),
    case(&["plan", "--image", "host=oci-archive:/nope"], 2, "`oci-archive:/nope`", "`/nope` does not exist"),
    case(&["plan", "--image", "host=docker-archive:/nope"], 2, "`docker-archive:/nope`", "`/nope` does not exist"),
    case(&["plan", "long"], 2, "`cmd` has 131072 bytes", "move it to a file of the project"),
    case(&["run", "-e", "HM_TEST_UNSET"], 2, "failed to read `HM_TEST_UNSET`", "hint: set it, or pass `-e"),
    case(&["run", "--secret", "HM_TEST_UNSET"], 2, "is missing: variable", "hint: export HM_TEST_UNSET, or pass"),
    case(&["run", "--secret", "T=value"], 2, "invalid value 'T=value'", "NAME=env:VAR or NAME=file:PATH"),
    case(&["run", "--secret", "T=file:/nope"], 2, "failed to read secret `T` from /nope", "No such file"),
    case(&["run", "ci", "tets"], 2, "no step named `tets` in the pipeline", "hint: did you mean `test`?"),
    case(&["run", "ci", "zzzzzzzz"], 2, "no step named `zzzzzzzz`", "hint: run `hm plan` to list the steps"),
    case(&["run", "ci", "--from", "tets"], 2, "no step named `tets` in the pipeline", "hint: did you mean `test`?"),
    case(&["run", "ci", "test", "--failed"], 2, "cannot be used with '--failed'", "Usage: hm run"),
    case(
        &["run", "fresh", "--failed"],
        2,
        "no earlier run of `fresh` in ",
        "hint: run the pipeline without `--failed`",
    ),
    case(&["run", "--watch", "-f", "-"], 2, "cannot read the pipeline from stdin again", "hint: pass `-f FILE`"),
    case(&["run", "-d", ".hm/ci.json"], 2, "ci.json is not a directory", ""),
    case(&["plan", "-f", ".hm/ci.json", "ci"], 2, "no step named `ci` in the pipeline", "hint: run `hm plan`"),
    case(&["run", "-j", "0"], 2, "invalid value '0' for '--jobs <N>'", "expected a whole number from 1 on"),
    case(&["run", "-j", "x"], 2, "invalid value 'x' for '--jobs <N>'", "expected a whole number from 1 on"),
    case(&["run", "--memory", "lots"], 2, "invalid value 'lots' for '--memory <SIZE>'", "try '--help'"),
    case(&["run", "--secret", "HM_TEST_EMPTY"], 2, "secret `HM_TEST_EMPTY` is empty", "hint: set its value")
        .with(&[("HM_TEST_EMPTY", "")]),
    case(&["report", "--junit", "-", "ffffffff"], 2, "no run with id prefix `ffffffff`", "hint: run `hm runs`"),
    case(&["man", "pages"], 2, "SOURCE_DATE_EPOCH is not a number of seconds", "hint: unset it")
        .with(&[("SOURCE_DATE_EPOCH", "now")]),
    case(&["init", "-t", "rust"], 2, "the project has a pipeline: .hm/ci.json", "hint: "),
    case(
        &["inputs", "test"],
        2,
        "what step `test` read was not recorded",
        "hint: run the pipeline with `--check-inputs`",
    ),
    case(&["run", "--refresh", "tets"], 2, "no step named `tets`", "hint: did you mean `test`?"),
    case(&["run", "--timeout", "x"], 2, "invalid value 'x' for '--timeout", "a duration such as 90s"),
    case(&["run", "--no-watch"], 2, "`--no-watch` is not possible", "hint: remove the option"),
    case(&["run", "--bogus"], 2, "unexpected argument '--bogus'", "For more information, try '--help'"),
    case(&["run"], 2, "HM_NETWORK names no network", "hint: set it to `private`, `host` or `none`")
        .with(&[("HM_NETWORK", "x")]),
    case(&["run"], 3, "failed to make the directory `/proc/nope`", "hint: set HM_CACHE_DIR to a directory")
        .with(&[("HM_CACHE_DIR", "/proc/nope")]),
    case(&["logs", "tets"], 2, "no step named `tets` in run", "hint: did you mean `test`?"),
    case(&["logs", "fffff"], 2, "no step named `fffff`", "no run's id begins with it, either: run `hm runs`"),
    case(&["logs", "--attempt", "1"], 2, "`--attempt` needs a step", "hint: name it, as in `hm logs test --attempt 1`"),
    case(&["logs", "test", "--attempt", "9"], 2, "step `test` has no attempt 9", "hint: it had 1 attempt"),
    case(&["help", "doctr"], 2, "no command or topic `doctr`", "hint: did you mean `doctor`?"),
    case(&["help", "zzz"], 2, "no command or topic `zzz`", "the topic is `remote`"),
    case(&["schema", "x"], 2, "invalid value 'x' for '<KIND>'", "possible values: ir, config"),
    case(&["runs", "nope"], 2, "no runs of pipeline `nope`", "hint: pipelines with runs: ci"),
    case(&["why", "nope"], 2, "no step named `nope` in run", "hint: steps: test"),
    case(&["shell", "test"], 2, "does not keep the files of step `test`", "hint: run it in the sandbox"),
    case(&["cp", "test", "."], 2, "`test` has no path", "hint: use [RUN/]STEP:PATH"),
    case(&["cache", "export", "test", "x"], 2, "invalid target `x`", "expected `oci:DIR[:TAG]`"),
    case(&["config", "set"], 2, "no configuration key is named `set`", "hint: "),
    case(&["completions", "x"], 2, "invalid value 'x' for '<SHELL>'", "[possible values: bash"),
    case(&["worker"], 2, "no engine is given", "hint: pass `--remote grpc://HOST:PORT`"),
];

/// Without a pipeline that would run by itself.
pub(super) const SEVERAL: &[Case] = &[case(
    &["run"],
    2,
    "several pipelines, and none is named `ci` or `default`",
    "hint: choose one, as in `hm run NAME`",
)];

/// A pipeline whose step runs outside of the sandbox.
const OUTSIDE: &[u8] = br#"{ "version": "0", "graph": { "node_holes": [], "edge_property": "directed", "edges": [],
    "nodes": [{ "step": { "key": "a", "cmd": "true", "image": "host", "runner": "process" }, "env": {} }] } }"#;

/// What a project may do, and what the user's own files say. In the same project.
pub(super) const TRUST: &[Case] = &[
    case(&["run", "out"], 2, "requests access beyond the sandbox, which you have not allowed", "run `hm trust -- out`")
        .having(&[(".hm/out.json", OUTSIDE)]),
    case(&["run", "out"], 2, "invalid value of HM_TRUST: expected 1 or 0", "hint: set HM_TRUST=1")
        .having(&[(".hm/out.json", OUTSIDE)])
        .with(&[("HM_TRUST", "yes")]),
    case(&["trust", "out"], 2, "no directory to record consent in", "hint: set one of them, or use HM_TRUST=1")
        .having(&[(".hm/out.json", OUTSIDE)])
        .with(&[("HOME", "")]),
    case(&["trust", "-f", ".hm/ci.json", "ci"], 2, "`-f` and `ci` both name a pipeline", "hint: remove one of them"),
];

/// Files of configuration. In the same project.
pub(super) const CONFIGURATION: &[Case] = &[
    case(&["run"], 2, "hm.toml, line 2: unknown variant `x`", "expected one of `human`, `quiet`")
        .having(&[(".hm/hm.toml", b"[preferences]\nformat = \"x\"\n")]),
    case(&["run"], 2, "config.toml, line 1: invalid type: integer `3`", "expected a table")
        .having(&[(".hm/config.toml", b"cloud = 3\n")]),
    case(&["run"], 2, "hm.toml: it is not UTF-8", "save it as UTF-8").having(&[(".hm/hm.toml", b"\xff")]),
    case(&["run"], 2, "`[project]` is not allowed in a project's hm.toml", "hint: move it to your own hm.toml")
        .having(&[(".hm/hm.toml", b"[project.\"/x\"]\nid = \"y\"\n")]),
    case(&["run", "--trust"], 2, "`[vm] kernel` in a project's hm.toml must be an absolute path", "hint: or set it in")
        .having(&[(".hm/hm.toml", b"[vm]\nkernel = \"x\"\n")]),
    case(&["run"], 2, "`[cache] share` is not allowed in your own hm.toml", "hint: give directories the same id")
        .having(&[("~/.config/hm/hm.toml", b"[cache]\nshare = \"x\"\n")]),
    case(&["run"], 2, "hm.toml is not UTF-8", "").having(&[("~/.config/hm/hm.toml", b"\xff")]),
    case(&["run"], 2, "hm.toml is not a regular file", "").having(&[("~/.config/hm/hm.toml/", b"")]),
    case(&["run"], 2, "invalid value of `backend` (HM_BACKEND)", "hint: expected local, docker, cloud")
        .with(&[("HM_BACKEND", "x")]),
];

/// The settings of an engine. In the same project.
pub(super) const ENGINE: &[Case] = &[
    case(&["worker", "--remote", "x"], 2, "invalid engine settings: invalid engine address `x`", "grpc://HOST:PORT"),
    case(&["run", "--remote-cache", "read"], 2, "--remote-cache needs an engine", "hint: pass `--remote URL`"),
    case(
        &["run", "--remote", "x", "--remote-cache", "read"],
        2,
        "--remote-cache: invalid engine address `x`",
        "expected grpc://HOST:PORT",
    ),
    case(
        &["run", "--remote", "grpc://[::1]:1", "--remote-cert", "cert.pem"],
        2,
        "the client certificate needs a key",
        "set --remote-key",
    ),
    case(
        &["run", "--remote", "grpc://[::1]:1", "--remote-key", "key.pem"],
        2,
        "the client key needs a certificate",
        "set --remote-cert",
    ),
    case(
        &["run", "--remote", "grpc://[::1]:1", "--remote-header", "secret"],
        2,
        "--remote-header: invalid header",
        "expected 'NAME: VALUE'",
    ),
    case(&["run"], 2, "HM_REMOTE_JOBS: ", "expected a number").with(&[("HM_REMOTE_JOBS", "many")]),
    case(&["run"], 2, "HM_REMOTE_CACHE: ", "expected `read`, `write`, `both` or `off`")
        .with(&[("HM_REMOTE_CACHE", "x")]),
    case(
        &["logstream", "--listen", "192.0.2.1:5"],
        3,
        "failed to serve log streams",
        "failed to listen on 192.0.2.1:5",
    ),
];

/// The user is logged in to a service that cannot be reached.
const LOGGED_IN: &[(&str, &str)] = &[("HM_API_URL", "https://127.0.0.1:1"), ("HM_API_TOKEN", "token")];
const LOGGED_IN_TO_ACME: &[(&str, &str)] =
    &[("HM_API_URL", "https://127.0.0.1:1"), ("HM_API_TOKEN", "token"), ("HM_ORG", "acme")];
const ANONYMOUS: &[(&str, &str)] = &[("HM_API_URL", "https://127.0.0.1:1")];

/// The service. In the same project.
pub(super) const SERVICE: &[Case] = &[
    case(
        &["cloud", "whoami"],
        3,
        "not logged in to https://127.0.0.1:1",
        "hint: run `hm cloud login`, or set HM_API_TOKEN",
    )
    .with(ANONYMOUS),
    case(&["run", "--backend", "cloud"], 3, "not logged in to https://127.0.0.1:1", "hint: run `hm cloud login`")
        .with(ANONYMOUS),
    case(
        &["cloud", "whoami"],
        4,
        "failed to look up the user: ",
        "hint: check the network, HM_API_URL (https://127.0.0.1:1)",
    )
    .with(LOGGED_IN),
    case(&["run", "--backend", "cloud"], 2, "no organization is named", "hint: use `--org SLUG`, set HM_ORG")
        .with(LOGGED_IN),
    case(
        &["run", "--backend", "cloud", "--keep"],
        2,
        "`--keep` has no meaning for a build on the service",
        "hint: remove the option, or run the build on this machine with `--backend local`",
    )
    .with(LOGGED_IN_TO_ACME),
    case(
        &["run", "--backend", "cloud"],
        2,
        "HM_CACHE_SHADOW has no meaning for a build on the service",
        "hint: unset it, or run the build on this machine with `--backend local`",
    )
    .with(&[("HM_CACHE_SHADOW", "strict"), ("HM_API_URL", "https://127.0.0.1:1")]),
    case(&["run", "--backend", "cloud"], 2, "HM_CACHE_SHADOW has no such value", "hint: set it to `1`, or to `strict`")
        .with(&[("HM_CACHE_SHADOW", "x"), ("HM_API_URL", "https://127.0.0.1:1")]),
    case(&["run", "--dry-run"], 2, "HM_CACHE_SHADOW has no such value", "hint: set it to `1`, or to `strict`")
        .with(&[("HM_CACHE_SHADOW", "x")]),
    case(&["run", "--dry-run"], 2, "HM_VERIFY has no such value", "hint: set it to `1`, which compares")
        .with(&[("HM_VERIFY", "x")]),
    case(
        &["verify"],
        2,
        "HM_CACHE_SHADOW and `hm verify` cannot be used together",
        "hint: unset HM_CACHE_SHADOW: with it, nothing is found by what steps read",
    )
    .with(&[("HM_CACHE_SHADOW", "1")]),
    case(
        &["run", "--backend", "cloud"],
        2,
        "HM_VERIFY has no meaning for a build on the service",
        "hint: compare what steps leave on this machine",
    )
    .with(&[("HM_VERIFY", "1"), ("HM_API_URL", "https://127.0.0.1:1")]),
    case(
        &["run", "--backend", "cloud", "--org", "a b"],
        2,
        "`a b` is not the slug of an organization",
        "expected letters, digits",
    )
    .with(LOGGED_IN),
    case(&["cloud", "run", "ci"], 2, "failed to read plan.json", "hint: write it with `hm render`")
        .with(LOGGED_IN_TO_ACME),
    case(&["cloud", "run", "ci"], 2, "the pipeline in plan.json is invalid", "missing field `graph`")
        .having(&[("plan.json", b"{}")])
        .with(LOGGED_IN_TO_ACME),
    case(&["cloud", "build", "show", "9"], 2, "no pipeline is named", "hint: use `-p SLUG`; `hm cloud pipeline list`")
        .with(LOGGED_IN_TO_ACME),
    case(&["cloud", "build", "show", "-p", "../x", "9"], 2, "`../x` is not the slug of a pipeline", "expected letters")
        .with(LOGGED_IN_TO_ACME),
    case(
        &["cloud", "whoami"],
        2,
        "refusing to send a token to http://example.com",
        "hint: use an address that begins with",
    )
    .with(&[("HM_API_URL", "http://example.com"), ("HM_API_TOKEN", "token")]),
    case(&["cloud", "whoami"], 2, "`cloud.api_url` (HM_API_URL) is not a URL", "hint: write it as in https://")
        .with(&[("HM_API_URL", "nope"), ("HM_API_TOKEN", "token")]),
    case(&["cloud", "login", "--paste"], 2, "there is no terminal to ask for the code", "hint: set HM_LOGIN_CODE")
        .with(ANONYMOUS),
    case(&["cloud", "whoami"], 2, "credentials.toml, line 1: this is no table of tokens", "run `hm cloud login`")
        .having(&[("~/.config/hm/credentials.toml", b"tokens")])
        .with(ANONYMOUS),
    case(&["cloud", "whoami"], 2, "credentials.toml is not a regular file, so hm does not use its", "hint: remove it")
        .having(&[("~/.config/hm/credentials.toml/", b"")])
        .with(ANONYMOUS),
];

/// Pipelines that are not valid, or cannot be rendered. In the same project, or another one.
pub(super) const PIPELINES: &[Case] = &[
    case(&["run", "bad"], 2, "pipeline `bad` (", "line 1, column 2: missing field `graph`")
        .having(&[(".hm/bad.json", b"{}")]),
    case(&["run", "-f", "-"], 2, "pipeline `stdin` (stdin) is invalid", "line 1, column 0"),
    case(&["pipelines"], 2, "bad.json) is not JSON", "line 1 column 1").having(&[(".hm/bad.json", b"x")]),
    case(&["pipelines"], 2, "failed to start `/nope`, which .hm/x.py needs", "or set HM_PYTHON to a Python")
        .having(&[(".hm/x.py", b"")])
        .with(&[("HM_PYTHON", "/nope")]),
    case(
        &["pipelines"],
        2,
        "failed to find the packages of `/bin/true`",
        "hint: set HM_PYTHON to a Python 3 that works",
    )
    .having(&[(".hm/x.py", b"")])
    .with(&[("HM_PYTHON", "/bin/true")]),
    case(&["pipelines"], 2, "x.py: it is a directory", "replace it with a regular file, or remove it")
        .having(&[(".hm/x.py/", b"")]),
    case(&["pipelines"], 2, "failed to start `/nope`, which .hm/x.ts needs", "hint: install Node 22.15 or later")
        .having(&[(".hm/x.ts", b"")])
        .with(&[("HM_NODE", "/nope")]),
    case(&["pipelines"], 2, "`/bin/true` ended without printing its pipelines", "EOF while parsing a value")
        .having(&[(".hm/x.ts", b"")])
        .with(&[("HM_NODE", "/bin/true"), ("HM_TRUST", "1")]),
    case(
        &["pipelines"],
        2,
        "failed to start `node`, which .hm/x.ts needs: there is no such program",
        "hint: install Node",
    )
    .having(&[(".hm/x.ts", b"")])
    .with(&[("PATH", "/nope")]),
];

/// The settings of a collector, and others that a run reads late. In the same project, after a run.
pub(super) const COLLECTOR: &[Case] = &[
    case(&["report", "--otlp"], 2, "no collector is named", "hint: set OTEL_EXPORTER_OTLP_ENDPOINT"),
    case(
        &["report", "--otlp"],
        2,
        "OTEL_EXPORTER_OTLP_ENDPOINT is not an address of a collector",
        "http://localhost:4318",
    )
    .with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "nope")]),
    case(&["report", "--otlp"], 2, "OTEL_EXPORTER_OTLP_HEADERS is not a list of headers", "NAME=VALUE,NAME=VALUE")
        .with(&[COLLECTOR_HERE, ("OTEL_EXPORTER_OTLP_HEADERS", "token")]),
    case(&["report", "--otlp"], 2, "OTEL_EXPORTER_OTLP_TIMEOUT is not a number", "of milliseconds")
        .with(&[COLLECTOR_HERE, ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]),
    case(&["report", "--otlp"], 2, "OTEL_EXPORTER_OTLP_COMPRESSION is", "neither gzip nor none")
        .with(&[COLLECTOR_HERE, ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")]),
    case(
        &["report", "--otlp"],
        2,
        "OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf",
        "hint: set OTEL_EXPORTER_OTLP_TRACES",
    )
    .with(&[COLLECTOR_HERE, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]),
    case(&["report", "--html", "-", "--open"], 2, "a page on stdout cannot be opened", "hint: name a file"),
    case(&["run"], 2, "`[otlp]` is not allowed in a project's hm.toml", "hint: move it to your own hm.toml")
        .having(&[(".hm/hm.toml", b"[otlp]\nendpoint = \"http://localhost:1\"\n")]),
    case(
        &["run"],
        2,
        "`cache_scope`, `cache_keys` and `cache_signing_key` of `[remote]` are not allowed in a project's hm.toml",
        "hint: move them to your own hm.toml",
    )
    .having(&[(".hm/hm.toml", b"[remote]\ncache_scope = \"pr-1\"\n")]),
    case(ENGINES_CACHE, 2, "remote.cache_scope: a scope is `trusted`", "or a name such as `pr-12`")
        .with(&[("HM_REMOTE_CACHE_SCOPE", "Trusted")]),
    case(ENGINES_CACHE, 2, "remote.cache_keys: key 1 is not a public key of minisign", "expected a line such as `RW")
        .with(&[("HM_REMOTE_CACHE_KEYS", "x")]),
    case(ENGINES_CACHE, 2, "cannot sign results with key: not a secret key of minisign", "make one with `minisign -G")
        .with(&[("HM_REMOTE_CACHE_SIGNING_KEY", "key")])
        .having(&[("key", b"x")]),
    case(
        &["run", "--runner", "process"],
        2,
        "HM_CACHE_SHADOW has no such value",
        "hint: set it to `1`, or to `strict`",
    )
    .with(&[("HM_CACHE_SHADOW", "x")]),
];

const COLLECTOR_HERE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");

/// What runs left, and where reports go. In the same project, after other runs: `good` passed, in `chain` the
/// step `broken` failed, so that `never` did not run, and `hm` was killed while step `endless` ran.
pub(super) const RUNS: &[Case] = &[
    case(
        &["run", "good", "--failed"],
        2,
        "every step passed in the last run of `good`",
        "hint: run the pipeline without",
    ),
    case(&["shell", "never"], 2, "step `never` did not run", "hint: inspect the step before it that did not pass"),
    case(
        &["shell", "endless"],
        2,
        "step `endless` has not ended, or hm was killed",
        "hint: see its output with `hm logs`",
    ),
    case(
        &["run", "-f", ".hm/ci.json", "test", "--failed"],
        2,
        "`--failed` cannot be used with steps",
        "hint: remove one",
    ),
    case(
        &["report", "--junit", "-", "--trace", "-"],
        2,
        "only one report can be written to stdout",
        "hint: name files for",
    ),
    case(&["report", "--junit", "-", "zz"], 2, "`zz` is not a run", "hint: run `hm runs` to list the runs"),
    case(&["report", "--junit", "/nope/x"], 2, "failed to write /nope/x: No such file or directory", ""),
    case(&["man", ".hm/ci.json"], 3, "failed to write manual pages to .hm/ci.json", "File exists"),
    case(&["--debug-trace", "/nope/x", "run"], 2, "failed to create the trace /nope/x", "No such file or directory"),
    case(&["logs"], 3, "failed to open the store: failed to make the directory `/proc/nope`", "hint: set HM_CACHE_DIR")
        .with(&[("HM_CACHE_DIR", "/proc/nope")]),
    case(&["logs"], 3, "failed to choose a directory for the store", "hint: set HM_CACHE_DIR").with(&[
        ("HM_CACHE_DIR", ""),
        ("HOME", ""),
        ("XDG_CACHE_HOME", ""),
    ]),
    case(
        &["cache", "save", "saved"],
        2,
        "`saved` is not a saved cache: it contains `file`",
        "hint: use an empty directory",
    )
    .having(&[("saved/file", b"")]),
    case(
        &["init", "--force", "-t", "rust"],
        2,
        ".hm/ci.json would have the name of the new pipeline",
        "hint: rename or remove",
    ),
];
