//! The source that a step and its children see while the user edits it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{
    backends::{runs, usable, usable_program},
    sandbox::{Ask, Bench},
};

#[tokio::test]
async fn a_rebuild_with_make_builds_nothing_until_something_it_needs_is_edited() {
    if !usable_program("make") {
        return;
    }
    let bench = Bench::new();
    let write = |name: &str, text: &str| fs::write(bench.source().join(name), text).unwrap();
    write("Makefile", "all: one two\n%: %.in\n\tcp $< $@\n\t@echo built $@\n");
    write("one.in", "1");
    write("two.in", "2");
    write("README", "read me");
    let mut run = bench.run();
    let parent = bench.step(&mut run, Ask::new("make -s")).await.unwrap();
    assert_eq!((parent.exit_code, run.output().await.as_str()), (0, "built one\nbuilt two\n"));

    let mut run = bench.run();
    let child = bench.step(&mut run, Ask::new("make -q").after(&parent)).await.unwrap();
    assert_eq!((child.exit_code, run.output().await.as_str()), (0, ""), "nothing was edited");

    write("README", "edited, and nothing depends on it");
    write("added", "nor on this");
    let mut run = bench.run();
    let child = bench.step(&mut run, Ask::new("make -q && cat README").after(&parent)).await.unwrap();
    let expected = "edited, and nothing depends on it\n";
    assert_eq!((child.exit_code, run.output().await.as_str()), (0, expected));

    write("two.in", "22");
    let mut run = bench.run();
    let child = bench.step(&mut run, Ask::new("make -s; cat one two").after(&parent)).await.unwrap();
    assert_eq!((child.exit_code, run.output().await.as_str()), (0, "built two\n122\n"));
}

/// Returns the toolchain that runs this test, if `cargo` and `rustc` are in it.
fn toolchain() -> Option<PathBuf> {
    let bin = PathBuf::from(std::env::var_os("CARGO")?).canonicalize().ok()?.parent()?.to_path_buf();
    (runs(&bin.join("cargo")) && runs(&bin.join("rustc"))).then(|| bin.parent().map(Path::to_path_buf))?
}

#[tokio::test]
async fn a_rebuild_with_cargo_compiles_nothing_until_something_is_edited() {
    let toolchain = toolchain();
    if !usable("cargo", toolchain.is_some(), "there is no rustc beside it") {
        return;
    }
    let toolchain = toolchain.unwrap();
    let bench = Bench::with(|builder| builder.host_dir(&toolchain));
    let write = |name: &str, text: &str| fs::write(bench.source().join(name), text).unwrap();
    fs::create_dir(bench.source().join("src")).unwrap();
    write("Cargo.toml", "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
    write("src/lib.rs", "mod other;\n");
    write("src/other.rs", "");
    write("README", "read me");
    let bin = toolchain.join("bin").display().to_string();
    let build =
        format!("export PATH={bin}:$PATH CARGO_HOME=/tmp/cargo CARGO_TERM_COLOR=never; cargo build --offline 2>&1");
    let mut run = bench.run();
    let parent = bench.step(&mut run, Ask::new(&build)).await.unwrap();
    let output = run.output().await;
    assert!(parent.exit_code == 0 && output.contains("Compiling tiny"), "{output}");
    write("README", "edited");
    for (edited, compiles) in [(None, false), (Some("src/other.rs"), true)] {
        // Another clone, in which every file has a new time.
        for name in ["Cargo.toml", "src/lib.rs", "src/other.rs"] {
            let text = fs::read(bench.source().join(name)).unwrap();
            fs::remove_file(bench.source().join(name)).unwrap();
            fs::write(bench.source().join(name), text).unwrap();
        }
        if let Some(edited) = edited {
            write(edited, "// edited\n");
            // As `rsync -t` or `unzip` leave it.
            let path = bench.source().join(edited);
            fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let mut run = bench.run();
        let child = bench.step(&mut run, Ask::new(&build).after(&parent)).await.unwrap();
        let output = run.output().await;
        assert_eq!((child.exit_code, output.contains("Compiling")), (0, compiles), "{output}");
    }
}

#[tokio::test]
async fn edits_take_precedence_over_files_that_the_parent_rewrote() {
    let bench = Bench::new();
    let write = |name: &str, text: &str| fs::write(bench.source().join(name), text).unwrap();
    fs::create_dir(bench.source().join("dir")).unwrap();
    for name in ["a", "b", "c", "dir/d", "dir/e"] {
        write(name, &format!("{name} old\n"));
    }
    let mut run = bench.run();
    let formatter = "chown -R 0:0 . && sed -i s/old/formatted/ a b c dir/d dir/e";
    let parent = bench.step(&mut run, Ask::new(formatter)).await.unwrap();
    assert_eq!(parent.exit_code, 0);

    // Edited in several rounds, each of which is a layer of the source.
    write("a", "a edited\n");
    bench.sh("true").await;
    fs::remove_file(bench.source().join("b")).unwrap();
    bench.sh("true").await;
    write("dir/d", "d edited\n");
    fs::rename(bench.source().join("dir/e"), bench.source().join("dir/f")).unwrap();
    let mut run = bench.run();
    let look = "for f in $(find . -type f | LC_ALL=C sort); do cat $f; done";
    let child = bench.step(&mut run, Ask::new(look).after(&parent)).await.unwrap();
    let expected = "a edited\nc formatted\nd edited\ndir/e old\n";
    assert_eq!((child.exit_code, run.output().await.as_str()), (0, expected));
    // Without the parent, the step sees the source alone.
    let (code, output) = bench.sh(look).await;
    assert_eq!((code, output.as_str()), (0, "a edited\nc old\nd edited\ndir/e old\n"));
}

#[tokio::test]
async fn a_source_of_many_layers_is_one_tree_to_a_step() {
    let bench = Bench::new();
    for name in ["gone", "swapped", "kept"] {
        fs::create_dir(bench.source().join(name)).unwrap();
        fs::write(bench.source().join(name).join("file"), name).unwrap();
    }
    bench.sh("true").await;
    fs::remove_dir_all(bench.source().join("gone")).unwrap();
    fs::remove_dir_all(bench.source().join("swapped")).unwrap();
    fs::write(bench.source().join("swapped"), "a file").unwrap();
    bench.sh("true").await;
    fs::create_dir(bench.source().join("gone")).unwrap();
    fs::write(bench.source().join("gone/new"), "new").unwrap();
    fs::remove_file(bench.source().join("swapped")).unwrap();
    fs::create_dir(bench.source().join("swapped")).unwrap();
    let (code, output) = bench.sh("find . | LC_ALL=C sort; rm -r gone kept; mkdir gone; ls gone").await;
    assert_eq!((code, output.as_str()), (0, ".\n./gone\n./gone/new\n./kept\n./kept/file\n./swapped\n"));
}
