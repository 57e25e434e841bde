//! Two places with two files each, variables, and what `hm config` shows of them.

use std::{ffi::OsString, fs, path::PathBuf};

use proptest::prelude::*;
use serde_json::Value;

use super::{
    args::ConfigArgs,
    file::{PlaceConfig, of_texts},
    schema::{BackendName, ConfigFile, json_schema},
    show::{Row, RowState, Shown},
    sources::{Config, ConfigSources},
    variables::{Environment, VARIABLES},
};
use crate::trust::Permission;

/// The places, highest precedence first: two variables, two files of the project, two of the user.
#[derive(Debug, Clone, Default)]
struct Places {
    variables: Vec<(&'static str, String)>,
    project: [String; 2],
    user: [String; 2],
}

const NAMES: [&str; 2] = ["hm.toml", "config.toml"];

impl Places {
    fn environment(&self) -> Environment {
        Environment::of(|name| {
            let found = self.variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    fn place(texts: &[String; 2], dir: &str, is_projects: bool) -> PlaceConfig {
        of_texts(dir, is_projects, &[(NAMES[0], &*texts[0]), (NAMES[1], &*texts[1])])
    }

    fn files(&self) -> (PlaceConfig, PlaceConfig) {
        (Self::place(&self.project, "/p/.hm", true), Self::place(&self.user, "/u/hm", false))
    }

    fn sources(&self) -> ConfigSources {
        let (project, user) = self.files();
        let checked = (project.check().unwrap(), user.check().unwrap());
        ConfigArgs::default().over(self.environment(), checked.0, checked.1).unwrap()
    }

    fn config(&self) -> Config {
        self.sources().resolve(None).unwrap()
    }

    fn shown(&self) -> Shown {
        let (project, user) = self.files();
        Shown::of(self.environment(), project, user, None)
    }

    fn asked(&self) -> Vec<String> {
        self.sources().permissions(None).unwrap().iter().map(Permission::name).collect()
    }
}

fn of_project(text: &str) -> Places {
    Places { project: [text.into(), String::new()], ..Places::default() }
}

/// Returns the effective row of a key.
fn row<'a>(shown: &'a Shown, key: &str) -> Option<&'a Row> {
    shown.rows.iter().find(|row| row.key == key && row.state == RowState::Effective)
}

fn text(row: Option<&Row>) -> Option<String> {
    row.and_then(|row| {
        Some(row.value.as_ref()?.as_str().map_or_else(|| row.value.clone().unwrap().to_string(), str::to_owned))
    })
}

#[test]
fn of_any_two_places_the_higher_one_wins() {
    let set = |places: &mut Places, at: usize| {
        let file = format!("backend = 'cloud'\n[cloud]\norg = 'o{at}'\n");
        match at {
            0 => places.variables.push(("HM_ORG", "o0".into())),
            1 => places.variables.push(("HM_CLOUD__ORG", "o1".into())),
            2 | 3 => places.project[at - 2] = file,
            _ => places.user[at - 4] = file,
        }
    };
    for higher in 0..6 {
        for lower in higher..6 {
            let mut places = Places { variables: vec![("HM_BACKEND", "cloud".into())], ..Places::default() };
            set(&mut places, higher);
            set(&mut places, lower);
            let org = places.config().cloud.unwrap().org.unwrap();
            assert_eq!(org.value, format!("o{higher}"), "{higher} over {lower}");
            let place = [
                "HM_ORG",
                "HM_CLOUD__ORG",
                ".hm/hm.toml:3",
                ".hm/config.toml:3",
                "/u/hm/hm.toml:3",
                "/u/hm/config.toml:3",
            ];
            assert_eq!(org.source.to_string(), place[higher]);
        }
    }
}

#[test]
fn two_files_of_a_directory_are_merged_by_key() {
    let places = Places {
        user: [
            "[remote]\nendpoint = 'grpcs://a:1'\nheaders = { X-A = 'own' }\nca = 'ca.pem'\n[project.'/a']\nid = 'a'\n".into(),
            "[remote]\nendpoint = 'grpcs://b:1'\ninstance = 'i'\nheaders = { x-a = 'b', x-b = 'b' }\n[project.'/b']\nid = 'b'\n".into(),
        ],
        ..Places::default()
    };
    let remote = &places.sources().user.remote;
    assert_eq!((remote.endpoint.as_deref(), remote.instance.as_deref()), (Some("grpcs://a:1"), Some("i")));
    assert_eq!(
        remote.headers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        ["x-a=own", "x-b=b"]
    );
    // Paths of the user's files are relative to them, and those of a project stay as they are.
    assert_eq!(remote.ca.as_deref(), Some("/u/hm/ca.pem".as_ref()));
    assert_eq!(of_project("[remote]\nca = 'ca.pem'\n").sources().project.remote.ca.as_deref(), Some("ca.pem".as_ref()));
    assert_eq!(places.sources().user.projects.len(), 2);
}

#[test]
fn an_empty_value_is_unset() {
    let empty = "[cloud]\norg = ''\n[remote]\nendpoint = ''\n[docker]\nhost = ''\n".to_owned();
    let set = "[cloud]\norg = 'o'\n[remote]\nendpoint = 'grpcs://a:1'\n[docker]\nhost = 'unix:///d'\n".to_owned();
    let places = Places {
        variables: vec![("HM_BACKEND", "cloud".into()), ("HM_ORG", String::new()), ("HM_REMOTE", String::new())],
        project: [empty.clone(), empty.clone()],
        user: [empty, set],
    };
    let config = places.config();
    assert_eq!(config.cloud.unwrap().org.unwrap().value, "o");
    assert_eq!(config.endpoint.unwrap().url, "grpcs://a:1");
    assert_eq!(config.docker_host.as_deref(), Some("unix:///d"));
}

#[test]
fn a_file_of_the_published_command_may_have_anything_and_ours_may_not() {
    let theirs = "backend = 'docker'\nfuture = 1\n[cloud]\norgg = 'x'\napi_url = 'https://api.harmont.dev'\n\
                  [preferences]\nformat = 'human'\nauto_watch = false\n[step]\na = 1\n[new.table]\nb = 2\n";
    let place = of_texts("/u/hm", false, &[("config.toml", theirs)]).check().unwrap();
    let unknown: Vec<_> = place.unknown.iter().map(|it| (&*it.key, it.place.line, it.nearest.as_deref())).collect();
    assert_eq!(
        unknown,
        [("cloud.orgg", 4, Some("cloud.org")), ("future", 2, None), ("new", 11, None), ("step", 9, None)]
    );
    assert_eq!(place.file.backend, Some(BackendName::Docker));
    assert!(place.file.preferences.format.is_none(), "the default of the published command");
    for format in ["compact", "human"] {
        let text = format!("[preferences]\nformat = '{format}'\n");
        assert!(of_texts("/x", false, &[("config.toml", &text)]).check().unwrap().file.preferences.format.is_none());
    }
    for (name, text, expected) in [
        ("hm.toml", "[cloud]\norgg = 's3cret'\n", "line 2"),
        ("hm.toml", "\n[step.a]\nx = 1\n", "line 3: unknown argument `x` of steps"),
        ("hm.toml", "[service.a]\nx = 1\n", "line 2: unknown key `x` of services"),
        ("hm.toml", "\n[service.a]\nready = 1\n", "line 2: [service.a] a service needs an `image`"),
        ("hm.toml", "[preferences]\nformat = 'compact'\n", "line 2"),
        ("config.toml", "\n\nbackend = 's3cret'\n", "line 3"),
        ("config.toml", "[cloud]\norg = 3\n", "line 2"),
        ("config.toml", "[cloud]\norg = s3cret\n", "line 2"),
        ("config.toml", "[remote.headers]\nx = ['s3cret']\n", "line 2"),
    ] {
        let error = format!("{:?}", of_texts("/x", true, &[(name, text)]).check().err().unwrap());
        assert!(error.contains(expected) && error.contains(name), "{error}");
        assert!(name == "config.toml" && text.contains("backend") || !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn where_a_build_and_its_source_go_asks() {
    let all =
        "backend = 'cloud'\n[cloud]\napi_url = 'https://evil'\napp_url = 'https://pages'\norg = 'o'\npipeline = 'p'\n";
    let expected = ["backend = \"cloud\"", "[cloud] api_url", "[cloud] app_url"];
    assert_eq!(of_project(all).asked(), expected);
    assert_eq!(of_project("backend = 'docker'\n").asked(), ["backend = \"docker\""]);
    for harmless in [
        "backend = 'local'\n",
        "[cloud]\norg = 'o'\npipeline = 'p'\n",
        "[preferences]\nformat = 'json'\n",
        // Without effect, because the build stays here.
        "[cloud]\napi_url = 'https://evil'\n",
    ] {
        assert_eq!(of_project(harmless).asked(), [""; 0], "{harmless}");
    }
    let with = |variables: &[(&'static str, &str)], user: &str| Places {
        variables: variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        user: [user.into(), String::new()],
        ..of_project(all)
    };
    for (places, expected) in [
        (with(&[("HM_BACKEND", "local")], ""), &[][..]),
        (with(&[("HM_BACKEND", "cloud")], ""), &expected[1..]),
        (with(&[("HM_API_URL", "https://ours")], ""), &["backend = \"cloud\"", "[cloud] app_url"]),
        (with(&[("HM_APP_URL", "https://ours")], ""), &expected[..2]),
        (with(&[], "backend = 'cloud'\n[cloud]\napi_url = 'HTTPS://Evil/'\n"), &expected[2..]),
        (with(&[], "backend = 'docker'\n"), &expected[..]),
    ] {
        assert_eq!(places.asked(), expected, "{places:?}");
    }
    let mut ignored = of_project(all).sources();
    ignored.remove_unpermitted();
    let service = super::cloud::CloudConfig::of(&ignored).unwrap();
    assert_eq!(service.api_url.value, "https://api.harmont.dev");
    assert_eq!((service.org.unwrap().value, service.pipeline.unwrap().value), ("o".into(), "p".into()));
    assert_eq!(ignored.backend().unwrap().value, BackendName::Local);
}

#[test]
fn a_service_that_only_the_project_names_gets_no_token_of_the_environment() {
    let service = |project: &str, user: &str, variables: &[(&'static str, &str)]| {
        let mut variables: Vec<_> = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        variables.extend([("HM_API_TOKEN", "t".to_owned()), ("HM_BACKEND", "cloud".to_owned())]);
        let places = Places { variables, user: [user.into(), String::new()], ..of_project(project) };
        places.config().cloud.unwrap().is_users()
    };
    let named = "[cloud]\napi_url = 'https://a/'\n";
    assert!(service("", "", &[]) && service("", named, &[]) && service(named, "[cloud]\napi_url = 'https://A'\n", &[]));
    assert!(service(named, "", &[("HM_API_URL", "https://b")]));
    assert!(service("[cloud]\napi_url = 'https://api.harmont.dev'\n", "", &[]));
    assert!(!service(named, "", &[]) && !service(named, "[cloud]\napi_url = 'https://b'\n", &[]));
}

#[test]
fn what_has_no_effect_is_shown_with_the_reason() {
    let places = Places {
        variables: vec![
            ("HM_REMOTE_HEADER", "x-a: s3cret".into()),
            ("HM_API_TOKEN", "s3cret".into()),
            ("HM_CACHE_DIR", "/c".into()),
        ],
        project: [
            "[cloud]\napi_url = 'https://evil'\n[remote]\nendpoint = 'grpcs://p:1'\n[project.'/x']\nid = 'x'\n".into(),
            "tokenn = 's3cret'\n[remote]\nendpoint = 'grpcs://q:1'\n".into(),
        ],
        user: [
            "[remote]\nheaders = { x-b = 's3cret' }\ninstance = 'i'\n[cache]\nshare = 'all'\n".into(),
            String::new(),
        ],
    };
    let shown = places.shown();
    assert_eq!(shown.mistakes.len(), 1, "{:?}", shown.mistakes);
    let json = serde_json::to_string(&shown.rows).unwrap();
    assert!(!json.contains("s3cret") && !format!("{shown:?}").contains("s3cret"), "{json}");
    let state = |key: &str| {
        let states = shown.rows.iter().filter(|row| row.key == key).map(|row| match &row.state {
            RowState::Ignored { reason } => reason.clone(),
            state => format!("{state:?} {}", row.source),
        });
        states.collect::<Vec<_>>()
    };
    assert_eq!(state("remote.endpoint"), ["Effective .hm/hm.toml:4", "Overridden .hm/config.toml:3"]);
    assert_eq!(state("remote.headers.x-a"), ["for another engine"]);
    assert_eq!(state("remote.headers.x-b"), ["for another engine"]);
    assert_eq!(state("remote.instance"), ["for another engine"]);
    assert_eq!(state("cache.share"), ["only allowed in a project's file"]);
    assert_eq!(state("project.\"/x\".id"), ["only allowed in your own file"]);
    assert_eq!(state("tokenn"), ["unknown key"]);
    assert_eq!(state("HM_API_TOKEN"), ["only the project names the service"]);
    assert_eq!(state("HM_CACHE_DIR"), ["Effective HM_CACHE_DIR"]);
    assert_eq!(state("backend"), ["Effective default"]);
}

#[test]
fn every_mistake_is_shown_and_the_rest_is_read() {
    let places = Places {
        variables: vec![("HM_REMOTE_JOBS", "many".into())],
        project: ["x = 1\n".into(), "[cloud]\norg = 'o'\n".into()],
        user: ["[cloud".into(), "backend = 'nowhere'\n".into()],
    };
    let shown = places.shown();
    assert_eq!(shown.mistakes.len(), 4, "{:?}", shown.mistakes);
    assert_eq!(text(row(&shown, "cloud.org")), Some("o".into()));
}

/// Keys, with values to choose from.
const KEYS: [(&str, [&str; 2]); 12] = [
    ("backend", ["'local'", "'cloud'"]),
    ("cloud.api_url", ["'https://a'", "'https://b'"]),
    ("cloud.app_url", ["'https://c'", "'https://d'"]),
    ("cloud.org", ["'o1'", "'o2'"]),
    ("cloud.pipeline", ["'p1'", "''"]),
    ("preferences.format", ["'json'", "'human'"]),
    ("source.times", ["'real'", "'normal'"]),
    ("docker.host", ["'unix:///a'", "''"]),
    ("remote.endpoint", ["'grpcs://a:1'", "'grpcs://b:1'"]),
    ("remote.instance", ["'i1'", "'i2'"]),
    ("remote.jobs", ["1", "2"]),
    ("remote.headers.x-a", ["'h1'", "'h2'"]),
];

fn file() -> impl Strategy<Value = String> {
    let line = |(key, values): (&'static str, [&'static str; 2])| {
        proptest::option::of(prop::sample::select(values.to_vec()))
            .prop_map(move |value| value.map(|value| format!("{key} = {value}\n")))
    };
    KEYS.map(line).to_vec().prop_map(|lines| lines.into_iter().flatten().collect())
}

fn variables() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let of_keys = VARIABLES.iter().filter_map(|variable| {
        let (_, values) = KEYS.iter().find(|(key, _)| variable.key == Some(key))?;
        let values: Vec<String> = values.iter().map(|value| value.trim_matches('\'').to_owned()).collect();
        Some(proptest::option::of(prop::sample::select(values).prop_map(|value| (variable.name, value))))
    });
    of_keys.collect::<Vec<_>>().prop_map(|set| set.into_iter().flatten().collect())
}

proptest! {
    #[test]
    fn what_is_shown_is_what_is_used(
        variables in variables(), project in [file(), file()], user in [file(), file()],
    ) {
        let places = Places { variables, project, user };
        let shown = places.shown();
        prop_assert!(shown.mistakes.is_empty(), "{:?}", shown.mistakes);
        let (config, shown_text) = (places.config(), |key: &str| text(row(&shown, key)));
        let sources = places.sources();
        prop_assert_eq!(shown_text("backend"), Some(sources.backend().unwrap().value.as_str().to_owned()));
        let service = super::cloud::CloudConfig::of(&sources).unwrap();
        prop_assert_eq!(shown_text("cloud.api_url"), Some(service.api_url.value));
        prop_assert_eq!(shown_text("cloud.app_url"), Some(service.app_url.value));
        for (key, value) in [("cloud.org", service.org), ("cloud.pipeline", service.pipeline)] {
            let effective = row(&shown, key);
            prop_assert_eq!(text(effective), value.as_ref().map(|value| value.value.clone()));
            prop_assert_eq!(effective.map(|row| &row.source), value.as_ref().map(|value| &value.source));
        }
        let format = config.format.and_then(|format| clap::ValueEnum::to_possible_value(&format));
        prop_assert_eq!(shown_text("preferences.format"), format.map(|format| format.get_name().to_owned()));
        prop_assert_eq!(shown_text("source.times"), Some(config.source.times.as_str().to_owned()));
        prop_assert_eq!(shown_text("cache.mode"), Some(config.cache_mode.value.as_str().to_owned()));
        prop_assert_eq!(shown_text("docker.host"), config.docker_host);
        prop_assert_eq!(shown_text("remote.endpoint"), config.endpoint.as_ref().map(|engine| engine.url.clone()));
        prop_assert_eq!(shown_text("remote.jobs"), config.jobs.map(|jobs| jobs.to_string()));
        if let Some(engine) = config.endpoint {
            prop_assert_eq!(shown_text("remote.instance").unwrap_or_default(), engine.instance);
            prop_assert_eq!(row(&shown, "remote.headers.x-a").is_some(), !engine.headers.is_empty());
        }
    }
}

#[test]
fn the_guide_has_every_key_and_every_variable_and_no_other() {
    let guide = include_str!("../../../../docs/guide/configuration.md");
    let mut known = Vec::new();
    let mut open = vec![(String::new(), json_schema())];
    while let Some((prefix, schema)) = open.pop() {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            known.push(prefix);
            continue;
        };
        for (name, below) in properties {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            open.push((key, below.clone()));
        }
    }
    let rows = |heading: &str| -> Vec<String> {
        let section = guide.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
        let cells = section.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').nth(1).unwrap());
        let mut found: Vec<String> =
            cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
        found.sort();
        found
    };
    known.sort();
    assert_eq!(rows("Keys"), known);
    let mut variables: Vec<String> = VARIABLES.iter().map(|variable| variable.name.to_owned()).collect();
    variables.sort();
    assert_eq!(rows("Environment variables"), variables);
}

#[test]
fn the_table_has_every_variable_that_the_source_names() {
    /// Set by services for pipelines, by tests, for steps of workers, by scripts of shells, by `--watch` for
    /// its runs, and a prefix of names.
    const OTHERS: [&str; 7] = [
        "HM_COMPLETE",
        "HM_PIPELINE_ORG",
        "HM_PIPELINE_SLUG",
        "HM_REQUIRE_BACKENDS",
        "HM_SANDBOX_HELPER",
        "HM_RUN_ENV_",
        "HM_WATCH_EDIT",
    ];
    let mut open = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/bin/hm")];
    let mut found = 0;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("\"HM_") {
            let name: String = text[at + 1..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            // Texts begin with names, too.
            let is_whole = text[at + 1 + name.len()..].starts_with('"') && name != "HM_";
            if is_whole && !OTHERS.contains(&&*name) {
                found += 1;
                assert!(VARIABLES.iter().any(|variable| variable.name == name), "{name} in {}", path.display());
            }
        }
    }
    assert!(found > 40, "only {found} names were found");
}

#[test]
fn only_the_user_names_a_collector() {
    let text = "[otlp]\nendpoint = 'http://files:4318'\n";
    let users = Places { user: [text.into(), String::new()], ..Places::default() };
    assert_eq!(users.sources().collector().as_deref(), Some("http://files:4318"));
    assert_eq!(users.config().endpoint, None);
    let empty = Places { user: ["otlp.endpoint = ''\n".into(), String::new()], ..Places::default() };
    assert_eq!(empty.sources().collector(), None);
    let variables = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:s3cret@env:4318/v1?key=s3cret".to_owned())];
    let shown = Places { variables, ..users }.shown();
    let rows: Vec<_> = shown.rows.iter().filter(|row| row.key == "otlp.endpoint").collect();
    assert_eq!(rows.iter().map(|row| &row.state).collect::<Vec<_>>(), [&RowState::Effective, &RowState::Overridden]);
    assert_eq!(rows[0].value, Some("http://(set)@env:4318/v1?(set)".into()));

    let project = of_project(text);
    assert_eq!(project.sources().collector(), None);
    let refused = project.sources().resolve(None).unwrap_err().to_string();
    assert!(refused.contains("`[otlp]` is not allowed in a project's hm.toml"), "{refused}");
    let reason = RowState::Ignored { reason: "only allowed in your own file".into() };
    assert!(project.shown().rows.iter().any(|row| row.key == "otlp.endpoint" && row.state == reason));
}

#[test]
fn a_file_without_keys_is_the_default() {
    let empty = of_texts("/x", false, &[]).check().unwrap().file;
    let default = ConfigFile::default();
    assert_eq!((empty.keys.len(), empty.backend), (default.keys.len(), default.backend));
}
