//! Ways in which a trace could miss what a program reads, one test for each.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    sync::Arc,
};

use hm_exec::{cache::Kinds, event::ShadowVerdict, runner::ShadowMode};

use super::{Traced, built};
use crate::support::sandbox::{Ask, Bench};

/// Returns a sandbox whose source has the files of the programs.
fn bench() -> Option<Bench> {
    let program = built("holes")?;
    let bench = Bench::new();
    let source = bench.source();
    fs::copy(program, source.join("holes")).unwrap();
    fs::create_dir(source.join("d")).unwrap();
    for file in ["F", "FA", "FB", "d/rel"] {
        fs::write(source.join(file), "content").unwrap();
    }
    symlink("/rel", source.join("d/link")).unwrap();
    symlink("F", source.join("L")).unwrap();
    fs::write(source.join("sc"), "#!/workspace/holes\n").unwrap();
    fs::set_permissions(source.join("sc"), PermissionsExt::from_mode(0o755)).unwrap();
    Some(bench)
}

async fn run(name: &str) -> Option<Traced> {
    let bench = bench()?;
    let it = Traced::run(&bench, Ask::new(format!("./holes {name}"))).await;
    assert_eq!(it.code, 0, "{name}: {}", it.output);
    Some(it)
}

const CONTENT: Kinds = Kinds::CONTENT;

/// Tests that a program's trace has an entry, and that nothing else of the source is missing or wrong.
macro_rules! records {
    ($($name:ident: $path:literal is $kinds:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let Some(it) = run(stringify!($name)).await else { return };
                assert!(it.kinds($path).contains($kinds), "{:?}", it.source());
                assert_eq!(it.reasons(), Vec::<String>::new());
            }
        )*

        /// No hole makes a look-up take a result that an edit changed.
        mod misses {
            $(
                #[tokio::test]
                async fn $name() {
                    super::assert_missed_after_edit(stringify!($name), $path).await;
                }
            )*
        }
    };
}

/// Runs a program twice in shadow mode, with an edit of what it reads between, and tests that nothing is
/// found.
async fn assert_missed_after_edit(name: &str, path: &str) {
    let Some(bench) = bench() else { return };
    let look_up = async || {
        let mode = Arc::new(ShadowMode::new("p"));
        let it = Traced::run_in(&bench, Ask::new(format!("./holes {name}")), Some(Arc::clone(&mode))).await;
        (it, mode.verdicts().pop().unwrap().1)
    };
    let (it, verdict) = look_up().await;
    assert_eq!((it.code, verdict), (0, ShadowVerdict::default()), "{name}: {}", it.output);
    let (_, verdict) = look_up().await;
    assert!(verdict.found && verdict.difference.is_none(), "without an edit: {verdict:?}");
    let file = bench.source().join(path.strip_prefix("/workspace/").unwrap());
    if file.is_symlink() {
        fs::remove_file(&file).unwrap();
        symlink("d", &file).unwrap();
    } else if file.is_dir() {
        fs::write(file.join("new"), "").unwrap();
    } else {
        // A program stays one with a byte at its end.
        fs::File::options().append(true).create(true).open(&file).unwrap().write_all(b"!").unwrap();
    }
    let (_, verdict) = look_up().await;
    assert!(!verdict.found && verdict.miss.is_some_and(|miss| miss.contains(path)), "{:?}", it.source());
}

records! {
    proc_fd: "/workspace/F" is CONTENT;
    dev_fd: "/workspace/F" is CONTENT;
    proc_cwd: "/workspace/F" is CONTENT;
    proc_root: "/workspace/F" is CONTENT;
    o_path_and_fstat: "/workspace/F" is Kinds::METADATA;
    fchdir: "/workspace/d/rel" is CONTENT;
    dir_fd: "/workspace/F" is CONTENT;
    own_working_directory: "/workspace/d/rel" is CONTENT;
    chroot: "/workspace/d/rel" is CONTENT;
    not_dumpable: "/workspace/F" is CONTENT;
    own_filter: "/workspace/F" is CONTENT;
    fgetxattr: "/workspace/F" is CONTENT.and(Kinds::METADATA);
    getxattr: "/workspace/F" is Kinds::METADATA;
    chmod_only: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    rename_only: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    truncate: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    append: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    fchmodat2: "/workspace/F" is Kinds::METADATA;
    link_of_fd: "/workspace/F" is CONTENT;
    end_of_page: "/workspace/F" is CONTENT;
    exclusive: "/workspace/F" is Kinds::METADATA;
    make_where_something_is: "/workspace/F" is Kinds::METADATA;
    probe: "/workspace/missing" is Kinds::ABSENT;
    list: "/workspace/d" is Kinds::LISTING;
    readlink: "/workspace/L" is Kinds::LINK;
    through_link: "/workspace/F" is CONTENT;
    own_link: "/workspace/F" is CONTENT;
    socket_path: "/workspace/missing" is Kinds::ABSENT;
    bad_address: "/workspace/holes" is CONTENT;
    removed_file: "/workspace/F" is CONTENT;
    in_root: "/workspace/d/rel" is CONTENT;
    failed_rename: "/workspace/d/rel" is CONTENT;
    same_descriptor: "/workspace/FB" is CONTENT;
    probes_listener: "/workspace/F" is CONTENT;
    unnamed_file: "/workspace/named" is Kinds::WRITTEN;
    statfs: "/workspace/F" is Kinds::METADATA;
    watch: "/workspace/F" is Kinds::METADATA;
    handle: "/workspace/F" is Kinds::METADATA;
    set_attribute: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    set_times: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    hard_link: "/workspace/F" is CONTENT;
    exchange: "/workspace/F" is CONTENT.and(Kinds::WRITTEN);
    remove_directory: "/workspace/d" is Kinds::LISTING;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn a_path_that_a_tracer_of_the_step_changes() {
    let Some(it) = run("attach").await else { return };
    assert!(it.kinds("/workspace/FB").contains(CONTENT), "{:?}", it.source());
    assert_eq!(it.kinds("/workspace/FA"), Kinds::default(), "{:?}", it.source());
    assert_eq!(it.reasons(), Vec::<String>::new());
}

/// Where a path leads that starts in a removed directory is not known.
#[tokio::test]
async fn removed_directory() {
    let Some(it) = run("removed_directory").await else { return };
    assert!(it.reasons().iter().any(|reason| reason.contains("could not be examined (open")), "{:?}", it.reasons());
}

/// A script without a path that is executed: the kernel opens its interpreter.
#[tokio::test]
async fn memory_file() {
    let Some(bench) = bench() else { return };
    fs::copy("/bin/true", bench.source().join("d/interpreter")).unwrap();
    let it = Traced::run(&bench, Ask::new("./holes memory_file; true")).await;
    assert!(it.kinds("/workspace/d/interpreter").contains(CONTENT), "{:?}", it.source());
}

/// A script that is named absolutely can have an interpreter that is not.
#[tokio::test]
async fn relative_interpreters() {
    let Some(bench) = bench() else { return };
    let source = bench.source();
    fs::create_dir(source.join("e")).unwrap();
    fs::write(source.join("script"), "#!interpreter\n").unwrap();
    fs::set_permissions(source.join("script"), PermissionsExt::from_mode(0o755)).unwrap();
    for dir in ["d", "e"] {
        fs::copy("/bin/true", source.join(dir).join("interpreter")).unwrap();
    }
    let it = Traced::run(&bench, Ask::new("cd d && /workspace/script && cd ../e && /workspace/script")).await;
    assert_eq!(it.code, 0, "{}", it.output);
    for dir in ["d", "e"] {
        assert!(it.kinds(&format!("/workspace/{dir}/interpreter")).contains(CONTENT), "{dir}: {:?}", it.source());
    }
}

/// The kernel takes five interpreters one after the other, and then a program with a loader.
#[tokio::test]
async fn interpreters_of_interpreters() {
    let Some(bench) = bench() else { return };
    let source = bench.source();
    for level in 1..=5 {
        let next = if level == 5 { "/workspace/end".to_owned() } else { format!("/workspace/s{}", level + 1) };
        fs::write(source.join(format!("s{level}")), format!("#!{next}\n")).unwrap();
        fs::set_permissions(source.join(format!("s{level}")), PermissionsExt::from_mode(0o755)).unwrap();
    }
    fs::copy("/bin/echo", source.join("end")).unwrap();
    let it = Traced::run(&bench, Ask::new("./s1")).await;
    assert_eq!(it.code, 0, "{}", it.output);
    for name in ["s1", "s2", "s3", "s4", "s5", "end"] {
        assert!(it.kinds(&format!("/workspace/{name}")).contains(CONTENT), "{name}: {:?}", it.source());
    }
}

#[tokio::test]
async fn proc_other() {
    let Some(bench) = bench() else { return };
    // The shell stays, and the program names its working directory.
    let it = Traced::run(&bench, Ask::new("./holes proc_other; true")).await;
    assert!(it.kinds("/workspace/F").contains(CONTENT), "{:?}", it.source());
}

#[tokio::test]
async fn a_truncated_file_is_not_read() {
    let Some(it) = run("open_and_truncate").await else { return };
    let kinds = it.kinds("/workspace/F");
    assert!(kinds.contains(Kinds::WRITTEN.and(Kinds::METADATA)) && !kinds.contains(CONTENT), "{:?}", it.source());
}

#[tokio::test]
async fn what_the_step_wrote_is_no_input() {
    let Some(it) = run("own_file").await else { return };
    let kinds = it.kinds("/workspace/own");
    assert!(kinds.contains(Kinds::ABSENT.and(Kinds::WRITTEN)) && !kinds.contains(CONTENT), "{:?}", it.source());
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn int_80() {
    let Some(it) = run("int_80").await else { return };
    assert_eq!(it.reasons(), ["a program made 32-bit system calls, which are not traced"]);
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn x32_is_denied() {
    run("x32").await;
}

#[tokio::test]
async fn io_uring_is_denied() {
    run("io_uring").await;
}

#[tokio::test]
async fn a_path_that_another_thread_changes_does_not_disturb_the_step() {
    let Some(it) = run("flipped_path").await else { return };
    let read = ["/workspace/FA", "/workspace/FB"].iter().any(|path| it.kinds(path).contains(CONTENT));
    assert!(read, "{:?}", it.source());
}

/// A script that is executed by its descriptor: the kernel opens its interpreter.
#[tokio::test]
async fn fexecve() {
    let Some(bench) = bench() else { return };
    fs::write(bench.source().join("sc"), "#!/workspace/d/interpreter\n").unwrap();
    fs::copy("/bin/true", bench.source().join("d/interpreter")).unwrap();
    let it = Traced::run(&bench, Ask::new("./holes fexecve; true")).await;
    assert!(it.kinds("/workspace/sc").contains(CONTENT), "{:?}", it.source());
    assert!(it.kinds("/workspace/d/interpreter").contains(CONTENT), "{:?}", it.source());
}

/// A tracer beside pid 1 would be killed, and every later call would fail.
#[tokio::test]
async fn killing_every_process_does_not_reach_the_tracer() {
    let Some(bench) = bench() else { return };
    // It is the command, so that no shell's end is the step's.
    let it = Traced::run(&bench, Ask::new("exec ./holes kill_all")).await;
    assert_eq!(it.code, 0, "{}", it.output);
    assert!(it.kinds("/workspace/F").contains(CONTENT), "{:?}", it.source());
    assert_eq!(it.reasons(), Vec::<String>::new());
}

/// A step with a listener of its own, or with a filter that hands calls to a tracer, works, and is not
/// traced.
#[tokio::test]
async fn a_step_that_traces_others_is_run_untraced() {
    for name in ["own_listener", "tracing_filter"] {
        let Some(bench) = bench() else { return };
        let it = Traced::run(&bench, Ask::new(format!("echo before; ./holes {name} && echo after"))).await;
        assert_eq!(it.code, 0, "{name}: {}", it.output);
        assert_eq!(it.reasons(), ["a program of the step traced others by seccomp"], "{name}");
        assert!(it.output.contains("after") && it.output.contains("run again"), "{name}: {}", it.output);
    }
}
