//! Steps' snapshots exported as images, for other tools and for hm itself.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hm_exec::{StepResult, image::ExportTarget, runner::sandbox::SandboxExportError, source, store::ImageDigest};

use crate::support::{
    backends::usable,
    images::{BUSYBOX, Image, has_busybox},
    sandbox::{Ask, Bench},
    users::RANGE,
};

/// Prints the metadata and contents of everything that a step changed and of its base.
const LOOK: &str = "for f in $(find /workspace/* /data /etc/issue /etc/owned /made /root | sort); do stat -c '%n %A %h %Y %u' $f; \
                    test ! -f $f || test $f = /made/pipe || cat $f; done; echo $FROM_IMAGE; ls /etc/gone";

/// Runs a step over an image and a source, and a second step over the first.
async fn steps(bench: &Bench, image: &str) -> StepResult {
    fs::create_dir_all(bench.source().join("dir")).unwrap();
    fs::write(bench.source().join("dir/kept"), "kept\n").unwrap();
    fs::write(bench.source().join("removed"), "").unwrap();
    let mut run = bench.run();
    let first =
        "rm removed; mkdir /made; echo made > /made/file; chmod 4755 /made/file; touch -d @1000000000 /made/file";
    let first = bench.step(&mut run, Ask::new(first).image(image)).await.unwrap();
    let second = "ln -s file /made/link; echo deep > dir/new; rm /data/new; ln /made/file /made/again";
    let second = bench.step(&mut run, Ask::new(second).after(&first)).await.unwrap();
    assert_eq!(second.exit_code, 0, "{}", run.output().await);
    second
}

async fn export(bench: &Bench, step: &StepResult, to: &str) -> Result<ImageDigest, SandboxExportError> {
    let snapshot = step.committed_snapshot.as_ref().unwrap();
    let source = bench.store.snapshots().get(snapshot).unwrap().source.clone();
    let source = source::FrozenSource::find(&bench.store, &source, source::SourceTimes::Normal).unwrap().unwrap();
    bench.runner.export(snapshot, &source, ExportTarget::parse(to).unwrap()).await
}

/// Returns what a step that runs `LOOK` prints.
async fn look(bench: &Bench, ask: Ask) -> String {
    let mut run = bench.run();
    bench.step(&mut run, ask).await.unwrap();
    let output = run.output().await;
    output
        .lines()
        .filter(|line| !line.contains("unpack") && !line.contains("layer"))
        .map(|it| it.to_owned() + "\n")
        .collect()
}

/// Returns every file below a directory, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_run_can_take_an_export_as_its_image() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    let path = |name: &str| bench.path().join(name);
    Image::shell().write_oci(&path("image"), "latest");
    let step = steps(&bench, &format!("oci:{}", path("image").display())).await;
    let seen = look(&bench, Ask::new(LOOK).after(&step)).await;
    assert!(seen.contains("made") && seen.contains("deep") && seen.contains("yes"), "{seen}");

    let oci = format!("oci:{}:it", path("exported").display());
    let docker = format!("docker-archive:{}", path("exported.tar").display());
    let digest = export(&bench, &step, &oci).await.unwrap();
    assert_eq!(export(&bench, &step, &docker).await.unwrap(), digest);
    // The source of that run is part of the image; this run's own source is empty.
    let empty = Bench::new();
    for image in [oci, docker] {
        assert_eq!(look(&empty, Ask::new(LOOK).image(&image)).await, seen, "{image}");
    }
}

#[tokio::test]
async fn the_same_step_exports_to_the_same_bytes() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    let path = |name: &str| bench.path().join(name);
    Image::shell().write_oci(&path("image"), "latest");
    let step = steps(&bench, &format!("oci:{}", path("image").display())).await;
    for name in ["one", "two"] {
        export(&bench, &step, &format!("oci:{}", path(name).display())).await.unwrap();
        export(&bench, &step, &format!("docker-archive:{}.tar:it:1", path(name).display())).await.unwrap();
    }
    assert_eq!(files(&path("one")), files(&path("two")));
    assert_eq!(fs::read(path("one.tar")).unwrap(), fs::read(path("two.tar")).unwrap());
    // Export again to the same place, and under another name beside it.
    let before = files(&path("one"));
    export(&bench, &step, &format!("oci:{}", path("one").display())).await.unwrap();
    assert_eq!(files(&path("one")), before);
    export(&bench, &step, &format!("oci:{}:second", path("one").display())).await.unwrap();
    let index: serde_json::Value = serde_json::from_slice(&files(&path("one"))[Path::new("index.json")]).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn other_tools_read_an_export() {
    if !has_busybox() {
        return;
    }
    let version = Command::new("skopeo").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !usable("skopeo", version.is_ok(), "install the package of that name") {
        return;
    }
    let bench = Bench::new();
    let path = |name: &str| bench.path().join(name);
    Image::shell().write_oci(&path("image"), "latest");
    let step = steps(&bench, &format!("oci:{}", path("image").display())).await;
    let (oci, docker) = (
        format!("oci:{}:it", path("exported").display()),
        format!("docker-archive:{}", path("exported.tar").display()),
    );
    let digest = export(&bench, &step, &oci).await.unwrap();
    export(&bench, &step, &docker).await.unwrap();
    for (index, image) in [&oci, &docker].into_iter().enumerate() {
        let skopeo = |args: &[&str]| {
            let run = Command::new("skopeo").args(args).env("HOME", bench.path()).env("TMPDIR", bench.path()).output();
            let run = run.unwrap();
            assert!(run.status.success(), "{image}: {}", String::from_utf8_lossy(&run.stderr));
            run.stdout
        };
        let config: serde_json::Value = serde_json::from_slice(&skopeo(&["inspect", "--config", image])).unwrap();
        assert_eq!(config["config"]["WorkingDir"], "/workspace");
        let copy = format!("oci:{}:copy", path(&format!("copy-{index}")).display());
        skopeo(&["--insecure-policy", "copy", "-q", image, &copy]);
        let store = &bench.store;
        let pinned = hm_exec::image::Images::default().pin(store, &copy, &()).await.unwrap();
        if *image == oci {
            assert_eq!(pinned, hm_exec::store::Base::Image(digest));
        }
    }
}

#[tokio::test]
async fn root_filesystems_are_exported_with_their_layers_and_the_host_image_is_refused() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    let path = |name: &str| bench.path().join(name);
    fs::create_dir_all(path("root/bin")).unwrap();
    fs::copy(BUSYBOX, path("root/bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", path("root/bin/sh")).unwrap();
    let mut run = bench.run();
    let step = Ask::new("echo here > /file").image(format!("rootfs:{}", path("root").display()));
    let step = bench.step(&mut run, step).await.unwrap();
    let target = format!("oci:{}", path("exported").display());
    export(&bench, &step, &target).await.unwrap();
    let seen = look(&Bench::new(), Ask::new("busybox cat /file").image(&target)).await;
    assert_eq!(seen, "here\n");

    // An ordinary user cannot have an overlay over a directory with mounts in it, and `/etc` has some there.
    if std::env::var_os(RANGE).is_none() {
        let host = bench.step(&mut run, Ask::new("true")).await.unwrap();
        let error = export(&bench, &host, &target).await.unwrap_err();
        assert!(error.to_string().contains("image `host`"), "{error}");
    }
    fs::create_dir(path("occupied")).unwrap();
    fs::write(path("occupied/thesis"), "").unwrap();
    let error = export(&bench, &step, &format!("oci:{}", path("occupied").display())).await.unwrap_err();
    assert!(error.to_string().contains("not an OCI layout"), "{error}");
    assert_eq!(files(&path("occupied")).len(), 1, "nothing was left there");
    assert!(ExportTarget::parse("elsewhere").is_err());

    // A layout that is part of a checkout.
    fs::create_dir(path("beside")).unwrap();
    fs::create_dir(path("linked")).unwrap();
    std::os::unix::fs::symlink("../beside", path("linked/blobs")).unwrap();
    let error = export(&bench, &step, &format!("oci:{}", path("linked").display())).await.unwrap_err();
    assert!(error.to_string().contains("not an OCI layout"), "{error}");
    assert!(files(&path("beside")).is_empty(), "something was written beside it");
}
