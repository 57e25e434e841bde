//! Images in local files.

use std::{fs, path::Path};

use hm_exec::image::Images;
use hm_exec::store::{Base, IdMap, Store};

use crate::support::{
    images::{Image, Layer, gzip, has_busybox, tar_of},
    odd_layers,
    sandbox::{Ask, Bench},
    users::has_users,
};

/// Prints [`SEEN`] in a step on [`Image::shell`], whatever the format of the image.
const LOOK: &str = "cat /etc/issue; ls /etc/gone 2>&1; ls /data; stat -c '%a' /data/new /etc/issue; \
                    echo $PATH $FROM_IMAGE $EDITOR $HOME; stat -c %h /bin/busybox; stat -c %u:%g /etc/owned";
const SEEN: &str = "two\nls: /etc/gone: No such file or directory\nnew\n4755\n640\n/tools:/bin yes vi /root\n2\n";

#[tokio::test]
async fn steps_boot_from_images_in_files() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    let image = Image::shell();
    let path = |name: &str| bench.path().join(name);
    image.write_oci(&path("oci"), "latest");
    tar_of(&path("oci"), &path("oci.tar"));
    image.write_docker(&path("docker.tar"), "shell:latest");
    fs::write(path("docker.tar.gz"), gzip(&fs::read(path("docker.tar")).unwrap())).unwrap();
    for (transport, file) in [
        ("oci", "oci"),
        ("oci", "oci:latest"),
        ("oci-archive", "oci.tar:latest"),
        ("docker-archive", "docker.tar"),
        ("docker-archive", "docker.tar.gz:shell:latest"),
    ] {
        let name = format!("{transport}:{}", path(file).display());
        let mut run = bench.run();
        let result = bench.step(&mut run, Ask::new(LOOK).image(&name).env("EDITOR", "vi")).await.unwrap();
        let output = run.output().await;
        let printed: String =
            output.lines().filter(|line| !line.starts_with("err: ")).map(|it| it.to_owned() + "\n").collect();
        let owners = if has_users() { "1234:1234\n" } else { "0:0\n" };
        assert_eq!((result.exit_code, printed), (0, SEEN.to_owned() + owners), "{name}: {output}");
    }
}

#[tokio::test]
async fn children_inherit_the_image_and_its_changes() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    fs::write(bench.source().join("source"), "source\n").unwrap();
    Image::shell().write_oci(&bench.path().join("oci"), "latest");
    let name = format!("oci:{}", bench.path().join("oci").display());
    let mut run = bench.run();
    let first = Ask::new("echo more >> /etc/issue; rm -r /data; mkdir /data; cat source").image(&name);
    let first = bench.step(&mut run, first).await.unwrap();
    let child = Ask::new("cat /etc/issue; ls /data; echo $FROM_IMAGE; cat /etc/hosts | wc -l").after(&first);
    assert_eq!(bench.step(&mut run, child).await.unwrap().exit_code, 0);
    let output = run.output().await;
    let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with("err: ")).collect();
    assert_eq!(lines, ["source", "two", "more", "yes", "8"], "{output}");
    assert!(output.contains("unpacking oci:"), "{output}");
}

/// `docker::odd_layers` compares the same with a daemon, if there is one.
#[tokio::test]
async fn steps_boot_from_images_of_other_builders() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    let mut image = Image::shell();
    image.layers.extend(odd_layers::layers().map(odd_layers::Odd::end));
    image.write_oci(&bench.path().join("oci"), "latest");
    let look = "cd /odd; stat -c %h usr/bin/perlthanks inner usr/lib/x; echo $(cat usr/bin/perlthanks inner y lib/z abs/dir/f \
                usr/o second filled plain merged/own usr/sbin/s turned/t); readlink usr/link; ls merged turned; \
                test -e kept || echo gone; stat -c %s sparse; test $(stat -c %b sparse) -lt 100 && echo holes; \
                test -L lib && test -L sbin && test ! -L merged && echo links";
    let mut run = bench.run();
    let name = format!("oci:{}", bench.path().join("oci").display());
    let result = bench.step(&mut run, Ask::new(look).image(&name)).await.unwrap();
    let output = run.output().await;
    let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with("err: ")).collect();
    let expected = "3 3 3 perlperlXXFO2no morePownST usr/lib merged: own  turned: t gone 5242880 holes links";
    let seen = lines.join(" ");
    assert_eq!((result.exit_code, seen.as_str()), (0, expected), "{output}");
}

fn store() -> (tempfile::TempDir, std::sync::Arc<Store>) {
    let top = tempfile::tempdir().unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    (top, store)
}

fn id_map() -> IdMap {
    if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
}

/// Returns the names of everything in the store except its own files.
fn held(store: &Store) -> Vec<String> {
    let mut names = Vec::new();
    for dir in ["layers", "tmp"] {
        let mut dirs = vec![store.dir().join(dir)];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let entry = entry.unwrap();
                names.push(entry.file_name().into_string().unwrap());
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
    }
    names.sort();
    names
}

async fn fetch(store: &std::sync::Arc<Store>, name: &str) -> Result<Base, String> {
    let fetched = Images::default().fetch(store, name, id_map(), &()).await;
    fetched.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

#[tokio::test]
async fn an_image_has_the_same_identity_in_every_format() {
    let (top, store) = store();
    let image = Image { layers: vec![Layer::new().file("f", 0o644, "x").bytes()], env: vec![] };
    image.write_oci(&top.path().join("oci"), "a");
    image.write_docker(&top.path().join("docker.tar"), "a:b");
    let oci = format!("oci:{}", top.path().join("oci").display());
    let docker = format!("docker-archive:{}", top.path().join("docker.tar").display());
    let pinned = Images::default().pin(&store, &oci, &()).await.unwrap();
    assert_eq!(pinned, Base::Image(image.digest()));
    assert!(!held(&store).contains(&"f".into()), "pinning unpacks nothing");
    assert_eq!(fetch(&store, &oci).await.unwrap(), pinned);
    fs::remove_dir_all(top.path().join("oci/blobs")).unwrap();
    // The image's layers are in the store already, so the layers of the file are not read.
    assert_eq!(fetch(&store, &docker).await.unwrap(), pinned);
    assert_eq!(pinned.to_string().parse::<Base>().unwrap(), pinned);
}

#[tokio::test]
async fn broken_images_are_reported_and_leave_no_files() {
    let image = Image { layers: vec![Layer::new().file("evil", 0o644, "x").bytes()], env: vec![] };
    let hostile = {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..7].copy_from_slice(b"../evil");
        header.set_size(0);
        header.set_mode(0o644);
        header.set_cksum();
        let layer = [header.as_bytes(), &[0; 1024][..]].concat();
        Image { layers: vec![layer], env: vec![] }
    };
    let blob = |dir: &Path, index: usize, image: &Image| {
        dir.join("oci/blobs/sha256").join(hm_exec::store::ImageDigest::of(&image.blobs()[index]).hex())
    };
    type Break<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: Vec<(&str, Image, Break<'_>, &str)> = vec![
        ("a hostile layer", hostile.clone(), Box::new(|_| {}), "leads out of the image"),
        (
            "a layer that was changed",
            image.clone(),
            Box::new(|dir| {
                fs::write(blob(dir, 0, &image), gzip(&Layer::new().file("evil", 0o644, "y").bytes())).unwrap()
            }),
            "is corrupt",
        ),
        (
            "a layer that was cut",
            image.clone(),
            Box::new(|dir| {
                let whole = fs::read(blob(dir, 0, &image)).unwrap();
                fs::write(blob(dir, 0, &image), &whole[..whole.len() / 2]).unwrap();
            }),
            "damaged",
        ),
        (
            "a missing layer",
            image.clone(),
            Box::new(|dir| fs::remove_file(blob(dir, 0, &image)).unwrap()),
            "is missing",
        ),
        (
            "a configuration that was changed",
            image.clone(),
            Box::new(|dir| fs::write(blob(dir, 1, &image), "{}").unwrap()),
            "is corrupt",
        ),
        ("no index", image.clone(), Box::new(|dir| fs::remove_file(dir.join("oci/index.json")).unwrap()), "index.json"),
        (
            "a broken index",
            image.clone(),
            Box::new(|dir| fs::write(dir.join("oci/index.json"), "{\"manifests\":[{}]}").unwrap()),
            "is invalid",
        ),
    ];
    for (what, image, break_it, expected) in cases {
        let (top, store) = store();
        image.write_oci(&top.path().join("oci"), "latest");
        break_it(top.path());
        let error = fetch(&store, &format!("oci:{}", top.path().join("oci").display())).await.expect_err(what);
        assert!(error.contains(expected), "{what}: {error}");
        // Closing the store waits until everything that is to be removed is removed.
        let dir = store.dir().to_owned();
        drop(store);
        let store = Store::open(&dir).unwrap();
        assert!(!held(&store).contains(&"evil".into()), "{what}: {:?}", held(&store));
        assert!(!top.path().join("evil").exists());
    }
}

#[tokio::test]
async fn symlinks_within_a_layout_are_followed_and_those_out_of_it_are_not() {
    let image = Image { layers: vec![Layer::new().file("f", 0o644, "x").bytes()], env: vec![] };
    let layer = hm_exec::store::ImageDigest::of(&image.blobs()[0]).hex();
    // The file that is moved, and its destination; `inside/` is a directory of the layout.
    for (what, name) in [
        ("the index", "index.json".to_owned()),
        ("all blobs", "blobs".into()),
        ("a layer", format!("blobs/sha256/{layer}")),
    ] {
        for (to, is_inside) in [("oci/inside/it", true), ("outside", false)] {
            let (top, store) = store();
            let dir = top.path().join("oci");
            image.write_oci(&dir, "latest");
            fs::create_dir(dir.join("inside")).unwrap();
            fs::rename(dir.join(&name), top.path().join(to)).unwrap();
            let up = "../".repeat(name.matches('/').count());
            let target = if is_inside { format!("{up}inside/it") } else { format!("{up}../outside") };
            std::os::unix::fs::symlink(target, dir.join(&name)).unwrap();
            let fetched = fetch(&store, &format!("oci:{}", dir.display())).await;
            if is_inside {
                assert_eq!(fetched.unwrap(), Base::Image(image.digest()), "{what}");
            } else {
                let error = fetched.expect_err(what);
                assert!(error.contains("is a link out of it") && error.contains("cp -rL"), "{what}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn missing_archives_and_layouts_are_reported() {
    let (top, store) = store();
    Image { layers: vec![], env: vec![] }.write_oci(&top.path().join("oci"), "latest");
    fs::write(top.path().join("text"), "no archive").unwrap();
    for (name, expected) in [
        (format!("oci:{}:other", top.path().join("oci").display()), "no image `"),
        (format!("oci:{}", top.path().join("nothing").display()), "failed to read"),
        (format!("docker-archive:{}", top.path().join("text").display()), "not a complete tar file"),
        (format!("oci-archive:{}", top.path().join("text").display()), "not a complete tar file"),
        ("oci:".into(), "expected `oci:PATH`"),
        (format!("rootfs:{}", top.path().join("nothing").display()), "no such directory"),
    ] {
        let error = fetch(&store, &name).await.expect_err(&name);
        assert!(error.contains(expected), "{name}: {error}");
    }
}
