//! Odd layers, unpacked by the daemon and by hm: hm accepts every layer that the daemon accepts, and a step
//! sees the same tree on both runners.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use bollard::{
    Docker, body_full,
    query_parameters::{ImportImageOptionsBuilder, RemoveImageOptionsBuilder},
};
use futures_util::StreamExt;
use hm_exec::store::{
    IdMap,
    tree::{UnpackLimits, unpack},
};
use serde_json::json;

use crate::support::{
    docker::{Bench, pipeline},
    images::{Image, has_busybox},
    odd_layers::{self, Odd},
    users::is_root,
};

/// The default number of random trees beside the handwritten layers. The variable overrides it.
const CASES: u32 = 0;
const CASES_VARIABLE: &str = "HM_ODD_LAYERS";

/// The name of the image of one case at the daemon.
const CASE: &str = "hm-exec-test/odd:case";

/// A command that prints type, mode, owner, links and content of each path.
const LOOK: &str = "cd /; for top in odd c[0-9]*; do test -e $top || continue; \
                    /bin/busybox find $top -exec /bin/busybox stat -c '%n|%f|%u:%g|%h|%i|%N' {} +; \
                    /bin/busybox find $top -type f -exec /bin/busybox md5sum {} +; done";

/// Loads an image into the daemon. Returns an error with the daemon's reason if it refuses the image.
async fn load(docker: &Docker, image: &Image, name: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.tar");
    image.write_docker(&file, name);
    let body = body_full(fs::read(&file).unwrap().into());
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let mut answers = std::pin::pin!(docker.import_image(options, body, None));
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(|error| error.to_string())?;
        if let Some(error) = answer.error_detail.and_then(|detail| detail.message) {
            return Err(error);
        }
    }
    Ok(())
}

async fn remove(docker: &Docker, name: &str) {
    let options = RemoveImageOptionsBuilder::default().force(true).build();
    docker.remove_image(name, Some(options), None).await.unwrap();
}

/// Returns the tree that a step printed, by path, without details that may differ: inode numbers, and link
/// counts of directories. Instead of the inode number, all names of one inode have the path of the first.
fn tree(lines: &[&str]) -> BTreeMap<String, String> {
    let (mut tree, mut inodes) = (BTreeMap::<String, String>::new(), BTreeMap::new());
    let stats = lines.iter().filter_map(|line| line.split('|').collect::<Vec<_>>().try_into().ok());
    let mut stats: Vec<[&str; 6]> = stats.collect();
    stats.sort_unstable();
    for [path, mode, owner, links, inode, name] in stats {
        let is_dir = u32::from_str_radix(mode, 16).unwrap() & 0o170_000 == 0o040_000;
        let same = if is_dir { path } else { *inodes.entry(inode).or_insert(path) };
        let links = if is_dir { "" } else { links };
        tree.insert(path.to_owned(), format!("{mode} {owner} {links} like {same}: {name}"));
    }
    for (sum, path) in lines.iter().filter_map(|line| line.split_once("  ")) {
        write!(tree.get_mut(path).unwrap(), " {sum}").unwrap();
    }
    assert!(tree.contains_key("odd"), "{lines:?}");
    tree
}

/// A pseudo-random sequence.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn path(&mut self) -> String {
        let names = ["a", "b", "c", "d", "a", "b", "..", "."];
        loop {
            let count = 1 + self.below(3);
            let parts: Vec<_> = (0..count).map(|_| names[self.below(names.len())]).collect();
            // A path that leads to its own start or above it proves nothing or is refused.
            let mut depth = 0;
            let is_below = parts.iter().all(|part| {
                depth += match *part {
                    ".." => -1,
                    "." => 0,
                    _ => 1,
                };
                depth >= 0
            });
            if is_below && depth > 0 {
                return parts.join("/");
            }
        }
    }

    /// Adds a member below `top`. Most links lead to one of `dirs`, because the daemon accepts nothing behind
    /// the others. `names` are in use already: the daemon accepts no name twice.
    fn member(&mut self, layer: Odd, top: &str, dirs: &[String], names: &mut BTreeSet<String>) -> Odd {
        let mut name = self.path();
        while !names.insert(plain(&name)) {
            name = self.path();
        }
        let path = format!("{top}/{name}");
        let dir = &dirs[self.below(dirs.len())];
        match self.below(16) {
            0..5 => layer.file(&path, &path),
            5..8 => layer.dir(&path),
            8 => layer.symlink(&path, &self.path()),
            9..11 => layer.symlink(&path, &format!("/{dir}")),
            11 => layer.symlink(&path, &format!("{}{dir}/", "../".repeat(12))),
            12 => layer.hard_link(&path, &format!("/{top}/{}", self.path())),
            _ => layer.hard_link(&path, &format!("{top}/{}", self.path())),
        }
    }

    /// Makes a layer of members below `top` that hm accepts, because most random ones are refused, and the
    /// same layer with one more member that hm refuses.
    fn layer(&mut self, top: &str) -> (Odd, Option<Odd>) {
        let (mut layer, mut refused) = (Odd::default().dir(top), None);
        let (mut dirs, mut names) = (vec![top.to_owned()], BTreeSet::new());
        for _ in 0..25 {
            let more = self.member(layer.clone(), top, &dirs, &mut names);
            let dir = tempfile::tempdir().unwrap();
            match unpack(&more.clone().end()[..], dir.path(), IdMap::Root, UnpackLimits::default()) {
                Ok(_) => {
                    layer = more;
                    dirs = directories(dir.path(), top);
                }
                Err(_) => refused = Some(more),
            }
        }
        (layer, refused)
    }
}

/// Returns a name in the daemon's form, without `.` and `..`.
fn plain(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/').filter(|part| *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// Returns all directories below `root/top`, that one included, relative to `root`.
fn directories(root: &Path, top: &str) -> Vec<String> {
    let mut found = vec![top.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let entries = fs::read_dir(root.join(&found[at])).unwrap().map(Result::unwrap);
        let dirs = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        let names: Vec<_> = dirs.map(|dir| format!("{}/{}", found[at], dir.file_name().display())).collect();
        found.extend(names);
        at += 1;
    }
    found.sort();
    found
}

/// Returns a readable description of the members of a layer.
fn names(layer: Odd) -> Vec<String> {
    let bytes = layer.end();
    let mut archive = tar::Archive::new(&bytes[..]);
    let described = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let link = entry.link_name_bytes().unwrap_or_default();
        let (path, link) = (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), String::from_utf8_lossy(&link));
        format!("{:?} {path} -> {link}", entry.header().entry_type())
    });
    described.collect()
}

fn image(layers: impl IntoIterator<Item = Odd>) -> Image {
    Image { layers: layers.into_iter().map(Odd::end).collect(), env: vec![] }
}

#[tokio::test]
async fn a_step_in_the_sandbox_sees_odd_layers_as_the_daemon_unpacks_them() {
    if !is_root() || !has_busybox() {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let docker = bench.daemon.client().negotiate_version().await.unwrap();
    let cases = std::env::var(CASES_VARIABLE).ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);

    // One image with every accepted layer, so that each runner has to look at only one image.
    let [mut lower, mut upper] = odd_layers::layers();
    let mut taken = 0;
    for case in 0..cases {
        // Some levels down, because links lead up, and a case must not reach another case's files.
        let mut random = Random(u64::from(case).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 0x5eed);
        let top = format!("c{case}/t/t/t");
        let ((low, refused), (up, _)) = (random.layer(&top), random.layer(&top));
        if load(&docker, &image([low.clone(), up.clone()]), CASE).await.is_ok() {
            (lower, upper) = (lower.and(low.members()), upper.and(up.members()));
            taken += 1;
            remove(&docker, CASE).await;
        }
        if let Some(refused) = refused {
            let loaded = load(&docker, &image([refused.clone()]), CASE).await;
            assert!(loaded.is_err(), "the daemon takes what we do not: {:?}", names(refused));
        }
    }
    assert!(taken * 3 >= cases, "the daemon takes too few to tell anything: {taken} of {cases}");

    let mut whole = Image::shell();
    whole.layers.extend(image([lower, upper]).layers);
    let name = format!("hm-exec-test/odd:{}", &whole.digest().hex()[..12]);
    load(&docker, &whole, &name).await.unwrap();
    let archive = bench.dir.path().join("odd.tar");
    whole.write_docker(&archive, "odd:latest");
    let on = |key: &str, runner: &str, image: String| json!({ "step": { "key": key, "cmd": LOOK, "runner": runner, "image": image }, "env": {} });
    let steps =
        [on("daemon", "docker", name.clone()), on("ours", "sandbox", format!("docker-archive:{}", archive.display()))];
    let built = bench.build(&pipeline(&steps, &[])).await;
    remove(&docker, &name).await;
    let (daemon, ours) = (tree(&built.lines("daemon")), tree(&built.lines("ours")));
    let paths: BTreeSet<_> = daemon.keys().chain(ours.keys()).collect();
    let differences: Vec<_> = paths
        .into_iter()
        .filter(|path| daemon.get(*path) != ours.get(*path))
        .map(|path| format!("{path}\n  daemon {:?}\n  ours   {:?}", daemon.get(path), ours.get(path)))
        .collect();
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), daemon.len(), differences.join("\n"));
    println!("{taken} of {cases} random trees were taken; {} paths are the same", daemon.len());
}
