//! The project's file, the user's file and the arguments, merged.

use std::{fs, num::NonZeroUsize};

use hm_exec::{cache::CacheMode, project::ProjectDir, source::SourceTimes};

use super::{
    args::{ConfigArgs, Sharing},
    engine_args::EngineArgs,
    file::of_texts,
    sources::ConfigSources,
    variables::Environment,
};
use crate::trust::Permission;

const HOSTILE: &str = "[cache]\nshare = 'all'\n[docker]\nhost = 'tcp://evil:2375'\n\
    [vm]\nmemory = '1g'\nqemu = '/evil/qemu'\n\
    [remote]\nendpoint = 'grpc://evil:1'\nlogs = 'grpc://evil:2'\ninstance = 'evil'\njobs = 3\ncache = 'both'\n\
    headers = { X-Key = 's3cret' }\nplatform = { a = '1' }\nca = 'ca.pem'\n";

fn settings(args: &ConfigArgs, project: &str, user: &str) -> ConfigSources {
    let place = |text, is_projects| of_texts("/x", is_projects, &[("hm.toml", text)]).check().unwrap();
    args.over(Environment::default(), place(project, true), place(user, false)).unwrap()
}

/// Returns the mistake in a file.
fn mistake(name: &str, text: &str) -> String {
    format!("{:?}", of_texts("/x", true, &[(name, text)]).check().err().unwrap())
}

fn keys(settings: &ConfigSources) -> Vec<String> {
    settings.permissions(None).unwrap().iter().map(Permission::name).collect()
}

#[test]
fn all_that_reaches_outside_asks() {
    let asked = settings(&ConfigArgs::default(), HOSTILE, "");
    let expected = [
        "[cache] share",
        "[docker] host",
        "[remote] ca",
        "[remote] cache",
        "[remote] endpoint",
        "[remote] headers.x-key",
        "[remote] instance",
        "[remote] logs",
        "[remote] platform.a",
        "[vm] qemu",
    ];
    let mut found = keys(&asked);
    found.sort();
    assert_eq!(found, expected);
    let lines: Vec<String> = asked.permissions(None).unwrap().iter().map(Permission::line).collect();
    assert!(lines.iter().any(|line| line.contains("grpc://evil:1")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("s3cret")), "{lines:?}");
    let harmless = "[remote]\njobs = 2\ncache = 'off'\n[vm]\nmemory = '1g'\ncpus = 2\n";
    assert_eq!(keys(&settings(&ConfigArgs::default(), harmless, "[remote]\nendpoint = 'grpc://ours:1'")), [""; 0]);
}

#[test]
fn what_the_user_says_as_well_asks_for_nothing() {
    let same = settings(
        &ConfigArgs::default(),
        "[docker]\nhost = 'unix:///ours'\n[remote]\nendpoint = 'grpc://ours:1'\nlogs = 'grpc://ours:2'\n\
         platform = { a = '1' }\n",
        "[docker]\nhost = 'unix:///ours'\n[remote]\nendpoint = 'grpc://ours:1'\nlogs = 'grpc://ours:2'\n\
         platform = { a = '1' }\n",
    );
    assert_eq!(keys(&same), [""; 0]);
    let args = ConfigArgs {
        engine: EngineArgs {
            url: Some("grpc://argument:1".into()),
            logs: Some("grpc://argument:2".into()),
            instance: Some("argument".into()),
            ..EngineArgs::default()
        },
        cache: Some(Sharing::Read),
        docker_host: Some("unix:///argument".into()),
        ..ConfigArgs::default()
    };
    // Headers and certificates are for the engine that the project names, and go nowhere else.
    assert_eq!(keys(&settings(&args, HOSTILE, "")), ["[remote] platform.a", "[cache] share", "[vm] qemu"]);
}

#[test]
fn what_is_ignored_leaves_what_reaches_nothing() {
    let mut ignored = settings(&ConfigArgs::default(), HOSTILE, "[docker]\nhost = 'unix:///ours'");
    ignored.remove_unpermitted();
    assert_eq!(keys(&ignored), [""; 0]);
    let remote = ignored.resolve(None).unwrap();
    assert!(remote.endpoint.is_none() && remote.logs.is_none() && remote.platform.is_empty());
    assert_eq!((remote.docker_host.as_deref(), remote.jobs), (Some("unix:///ours"), NonZeroUsize::new(3)));
    assert!(remote.vm.memory.is_some() && remote.vm.qemu.is_none());
}

#[test]
fn the_times_of_source_files_need_no_consent_and_the_project_wins() {
    let times = |project: &str, user: &str| {
        let mut sources = settings(&ConfigArgs::default(), project, user);
        assert_eq!(keys(&sources), [""; 0]);
        sources.remove_unpermitted();
        sources.resolve(None).unwrap().source.times
    };
    let (normal, real) = ("[source]\ntimes = 'normal'\n", "[source]\ntimes = 'real'\n");
    assert_eq!(times("", ""), SourceTimes::Normal);
    assert_eq!((times(real, ""), times("", real)), (SourceTimes::Real, SourceTimes::Real));
    assert_eq!((times(real, normal), times(normal, real)), (SourceTimes::Real, SourceTimes::Normal));
    let error = mistake("hm.toml", "[source]\ntimes = 'fake'\n");
    assert!(error.contains("normal") && error.contains("real"), "{error}");
}

#[test]
fn files_that_the_source_leaves_out_need_no_consent_and_the_projects_list_replaces_the_users() {
    let ignore = |project: &str, user: &str| {
        let mut sources = settings(&ConfigArgs::default(), project, user);
        assert_eq!(keys(&sources), [""; 0]);
        sources.remove_unpermitted();
        sources.resolve(None).unwrap().source.ignore.map(|hidden| hidden.patterns().join(" "))
    };
    let (md, docs, none) =
        ("[source]\nignore = ['*.md', 'x']\n", "[source]\nignore = ['docs']\n", "[source]\nignore = []\n");
    assert_eq!((ignore("", ""), ignore(none, md), ignore("", none)), (None, None, None));
    assert_eq!((ignore(md, docs).as_deref(), ignore("", docs).as_deref()), (Some("*.md x"), Some("docs")));
    let error = mistake("hm.toml", "[source]\nignore = ['../x']\n");
    assert!(error.contains("line 2") && error.contains("wrong pattern `../x`"), "{error}");
    let error = mistake("hm.toml", "[source]\nignore = 'x'\n");
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn the_mode_of_the_cache_needs_no_consent_and_the_project_wins() {
    let mode = |project: &str, user: &str| {
        let mut sources = settings(&ConfigArgs::default(), project, user);
        assert_eq!(keys(&sources), [""; 0]);
        sources.remove_unpermitted();
        sources.resolve(None).unwrap().cache_mode.value
    };
    let (auto, off) = ("[cache]\nmode = 'auto'\n", "[cache]\nmode = 'off'\n");
    assert_eq!(mode("", ""), CacheMode::Declared);
    assert_eq!((mode(auto, ""), mode("", auto)), (CacheMode::Auto, CacheMode::Auto));
    assert_eq!((mode(auto, off), mode(off, auto)), (CacheMode::Auto, CacheMode::Off));
    let error = mistake("hm.toml", "[cache]\nmode = 'always'\n");
    assert!(error.contains("declared") && error.contains("auto"), "{error}");
}

#[test]
fn arguments_win_over_the_project() {
    let text = "[docker]\nhost = 'unix:///project'\n\
                [remote]\nendpoint = 'grpc://project:1'\ninstance = 'main'\nplatform = { a = '1', b = '2' }\n";
    let args = ConfigArgs {
        engine: EngineArgs {
            url: Some("grpc://argument:1".into()),
            headers: vec!["X-Token: t".parse().unwrap()],
            ..EngineArgs::default()
        },
        platform: vec!["b=3".parse().unwrap()],
        ..ConfigArgs::default()
    };
    let remote = settings(&args, text, "").resolve(None).unwrap();
    assert_eq!(remote.docker_host.as_deref(), Some("unix:///project"));
    let named = ConfigArgs { docker_host: Some("unix:///argument".into()), ..ConfigArgs::default() };
    let named = settings(&named, text, "").resolve(None).unwrap();
    assert_eq!(named.docker_host.as_deref(), Some("unix:///argument"));
    let endpoint = remote.endpoint.unwrap();
    assert_eq!((&*endpoint.url, &*endpoint.instance), ("grpc://argument:1", "main"));
    assert_eq!(endpoint.headers, [("x-token".to_owned(), "t".to_owned())]);
    assert_eq!(remote.platform.into_values().collect::<Vec<_>>(), ["1", "3"]);
}

#[test]
fn a_program_in_the_project_is_run_with_no_consent() {
    let top = tempfile::tempdir().unwrap();
    let root = top.path().canonicalize().unwrap();
    fs::write(root.join("qemu"), "").unwrap();
    let project = ProjectDir::open(&root).unwrap();
    for path in ["qemu".to_owned(), root.join("qemu").display().to_string()] {
        let text = format!("[vm]\nqemu = '{path}'\n");
        let error = settings(&ConfigArgs::default(), &text, "").resolve(Some(&project)).unwrap_err();
        assert!(error.to_string().contains("`[vm] qemu`"), "{error}");
    }
}

#[test]
fn what_the_user_consents_to_is_what_is_used() {
    let top = tempfile::tempdir().unwrap();
    let root = top.path().canonicalize().unwrap();
    fs::create_dir(root.join(".hm")).unwrap();
    let project = ProjectDir::open(&root).unwrap();
    let write = |text: &str| {
        for name in ["ca", "cert", "key"] {
            fs::write(root.join(".hm").join(name), text).unwrap();
        }
    };
    write("first");
    let text = "[remote]\nendpoint = 'grpcs://theirs:1'\nca = 'ca'\ncert = 'cert'\nkey = 'key'\n";
    let settings = settings(&ConfigArgs::default(), text, "");
    let digests = |permissions: Vec<Permission>| permissions.iter().map(Permission::digest).collect::<Vec<_>>();
    let asked = digests(settings.permissions(Some(&project)).unwrap());
    write("second");
    assert_eq!(digests(settings.permissions(Some(&project)).unwrap()), asked);
    let endpoint = settings.resolve(Some(&project)).unwrap().endpoint.unwrap();
    assert_eq!(endpoint.ca_pem.as_deref(), Some(&b"first"[..]));
    assert_eq!(endpoint.client_pem, Some((b"first".to_vec(), b"first".to_vec())));
}

#[test]
fn a_mistake_in_a_file_is_told_with_its_line_and_without_it() {
    let text = "[remote]\nendpoint = 'grpc://a:1'\nheaders = { authorization = Bearer s3cret }\n";
    let error = mistake("hm.toml", text);
    assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
}
