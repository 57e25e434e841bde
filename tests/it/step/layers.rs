//! The layer that a step writes.

use std::{collections::BTreeMap, io::Read};

use hm_exec::store::ImageDigest;

use crate::support::{
    images::Layer,
    step::{Action, everybody},
};

/// Makes every kind of change.
const CHANGES: &str = "set -e
    cd /
    echo new > data/new; chmod 4750 data/new; rm data/old 2>/dev/null || true
    rm etc/issue; rm -rf tools; mkdir tools; ln -s /bin/busybox tools/find; ln -s /bin/busybox tools/stat
    ln -s /bin/busybox tools/sort
    mkdir -m 2775 opt; mkdir -m 0 opt/locked; mkdir -p opt/deep/er
    echo one > opt/one; ln opt/one opt/two; ln -s ../nowhere opt/link; /bin/busybox mkfifo -m 600 opt/fifo
    /bin/busybox touch -d '2001-02-03 04:05:06' opt/one opt/deep
    echo x > opt/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789-long
    chmod 600 noted
    echo more >> /workspace/file; echo made > /workspace/made; rm /workspace/gone";

/// Prints all metadata and contents of the tree.
const LISTING: &str = "cd /; find bin data etc noted opt tools workspace -print0 | sort -z \
    | /bin/busybox xargs -0 stat -c '%n|%F|%a|%u|%g|%h|%N' ; \
    find data etc/hosts opt workspace -type f -print0 | sort -z | /bin/busybox xargs -0 /bin/busybox md5sum; \
    stat -c '%n %Y' opt/one opt/deep";

fn noted() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.user.note", &b"kept"[..])]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    tar.append_data(&mut header, "noted", &b""[..]).unwrap();
    tar.into_inner().unwrap()
}

fn with_source(action: &mut Action) {
    std::fs::write(action.workspace().join("file"), "source\n").unwrap();
    std::fs::write(action.workspace().join("gone"), "").unwrap();
    let layer = noted();
    action.add_layer(&layer, &ImageDigest::of(&layer).to_string());
}

/// Returns the members of a layer: each name with its type and mode.
fn members(layer: &[u8]) -> BTreeMap<String, (tar::EntryType, u32)> {
    let tar = zstd::decode_all(layer).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let header = entry.header();
            let about = (header.entry_type(), header.mode().unwrap());
            (entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned(), about)
        })
        .collect()
}

#[test]
fn a_child_sees_the_files_of_its_parent() {
    for who in everybody() {
        let mut parent = Action::new(who, &format!("{CHANGES}\n{LISTING}"));
        with_source(&mut parent);
        let first = parent.run();
        assert_eq!(first.code, Some(0), "{first:?}");

        let mut child = Action::new(who, LISTING);
        with_source(&mut child);
        let (blob, diff_id) = parent.layer(&first);
        child.add_layer(&blob, &diff_id);
        let second = child.run();
        assert_eq!(second.code, Some(0), "{second:?}");
        assert_eq!(second.stdout(), first.stdout());
        for seen in ["data/new|regular file|4750", "opt|directory|2775", "opt/locked|directory|0|", "opt/fifo|fifo|600"]
        {
            assert!(first.stdout().contains(seen), "{seen}: {first:?}");
        }
        assert_eq!(second.output.as_ref().unwrap().layer, None, "the child only looked");
    }
}

#[test]
fn the_layer_is_a_valid_oci_layer() {
    for who in everybody() {
        let mut action = Action::new(who, CHANGES);
        with_source(&mut action);
        let ended = action.run();
        let (blob, diff_id) = action.layer(&ended);
        let tar = zstd::decode_all(&blob[..]).unwrap();
        assert_eq!(ImageDigest::of(&tar).to_string(), diff_id);

        let members = members(&blob);
        let kind = |name: &str| members.get(name).map(|(kind, _)| *kind);
        assert_eq!(kind("etc/.wh.issue"), Some(tar::EntryType::Regular));
        assert_eq!(kind("workspace/.wh.gone"), Some(tar::EntryType::Regular));
        assert_eq!(kind("tools/.wh..wh..opq"), Some(tar::EntryType::Regular));
        assert_eq!(kind("opt/link"), Some(tar::EntryType::Symlink));
        assert_eq!(kind("opt/two"), Some(tar::EntryType::Link));
        assert_eq!(kind("opt/fifo"), Some(tar::EntryType::Fifo));
        assert_eq!(members["data/new"], (tar::EntryType::Regular, 0o4750));
        assert_eq!(kind("bin"), None, "what nobody touched is not in it");

        let mut archive = tar::Archive::new(&tar[..]);
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut noted = entries.find(|entry| entry.path().unwrap().to_str() == Some("noted")).unwrap();
        let kept = noted.pax_extensions().unwrap().unwrap().map(Result::unwrap);
        let mut kept = kept.filter(|it| it.key() == Ok("SCHILY.xattr.user.note"));
        assert_eq!(kept.next().unwrap().value_bytes(), b"kept");
        let mut rest = Vec::new();
        noted.read_to_end(&mut rest).unwrap();
    }
}

#[test]
fn the_same_step_writes_the_same_layer() {
    for who in everybody() {
        let command = "echo made > file; /bin/busybox touch -d '2001-02-03 04:05:06' file .";
        let layer = |action: Action| action.layer(&action.run());
        assert_eq!(layer(Action::new(who, command)), layer(Action::new(who, command)));
    }
}

#[test]
fn a_layer_that_is_not_needed_is_not_packed() {
    for who in everybody() {
        let nothing = Action::new(who, "true").run();
        assert_eq!((nothing.code, nothing.output.unwrap().layer), (Some(0), None));
        let mut unwanted = Action::new(who, "echo made > file");
        unwanted.input.commit = false;
        assert_eq!(unwanted.run().output.unwrap().layer, None);
        assert!(!unwanted.dir().join("layer.tar.zst").exists());
    }
}

#[test]
fn a_chain_of_steps_stacks_up() {
    for who in everybody() {
        let one = Action::new(who, "echo one > file");
        let two = one.child(&one.run(), "cat file; rm file; echo two > other");
        let ended = two.run();
        assert_eq!(ended.stdout(), "one\n", "{ended:?}");
        let mut three = one.child(&one.run(), "ls; cat other");
        let (blob, diff_id) = two.layer(&ended);
        three.add_layer(&blob, &diff_id);
        assert_eq!(three.run().stdout(), "other\ntwo\n");
    }
}

#[test]
fn stacked_layers_are_unpacked_in_parallel_and_in_their_order() {
    for who in everybody() {
        let mut action = Action::new(who, "cat /name");
        for number in 0..40 {
            let layer = Layer::new().file("name", 0o644, format!("{number}\n")).bytes();
            action.add_layer(&layer, &ImageDigest::of(&layer).to_string());
        }
        assert_eq!(action.run().stdout(), "39\n");
    }
}
