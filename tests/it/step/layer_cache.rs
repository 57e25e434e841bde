//! The cache of unpacked layers on a worker: what fills it, what damages it, and what it survives.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Child,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{
    filesystem::Filesystem,
    project::eventually,
    step::{Action, everybody},
};

const COMMAND: &str = "find / -xdev | grep -v ^/proc | sort; echo made > /made; cat /made";

/// Returns the entries of a cache that are whole.
fn whole(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let mut whole: Vec<_> = entries.filter(|entry| entry.join("seal").exists()).collect();
    whole.sort();
    whole
}

/// Runs a step that passes, and returns which files it saw.
#[track_caller]
fn passes(action: &Action) -> String {
    let ended = action.run();
    assert!(ended.code == Some(0) && ended.stdout().ends_with("\nmade\n"), "{ended:?}");
    assert_eq!(ended.output.as_ref().unwrap().cache_unused, None);
    ended.stdout()
}

fn layer_files(action: &Action) -> Vec<PathBuf> {
    fs::read_dir(action.dir().join("layers")).unwrap().map(|layer| layer.unwrap().path()).collect()
}

#[test]
fn a_layer_is_unpacked_once() {
    for who in everybody() {
        let mut action = Action::new(who, COMMAND);
        let expected = passes(&action);
        let cache = action.use_cache();
        assert_eq!(passes(&action), expected);
        assert_eq!(whole(&cache).len(), 3);
        // No layer can be read any more.
        for layer in layer_files(&action) {
            fs::write(layer, "no archive").unwrap();
        }
        assert_eq!(passes(&action), expected);
    }
}

#[test]
fn two_layers_with_equal_content_are_one() {
    for who in everybody() {
        let parent = Action::new(who, "echo one > /one");
        let ended = parent.run();
        let (blob, diff_id) = parent.layer(&ended);
        // As after an edit that was undone, and made once more.
        let mut action = parent.child(&ended, COMMAND);
        action.add_layer(&blob, &diff_id);
        let expected = passes(&action);
        assert!(expected.contains("\n/one\n"), "{expected}");
        action.use_cache();
        assert_eq!([passes(&action), passes(&action)], [expected.clone(), expected]);
    }
}

#[test]
fn a_damaged_layer_is_not_kept() {
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, COMMAND);
        let cache = action.use_cache();
        let path = action.dir().join("layers/1");
        let layer = fs::read(&path).unwrap();
        fs::write(&path, &layer[..layer.len() / 2]).unwrap();
        let ended = action.run();
        let (message, retry) = ended.failure();
        assert!(message.contains("layers/1") && retry, "{message}");
        fs::write(&path, layer).unwrap();
        passes(&action);
        assert_eq!(whole(&cache).len(), 3);
    }
}

/// Something that happens to an entry.
type Damage = fn(&Path, &Path);

#[test]
fn what_is_not_as_it_was_sealed_is_unpacked_again() {
    let damages: [(&str, Damage); 11] = [
        ("the seal is removed", |entry, _| fs::remove_file(entry.join("seal")).unwrap()),
        ("the seal is of something else", |entry, _| {
            let seal = fs::read_to_string(entry.join("seal")).unwrap();
            let mut lines: Vec<&str> = seal.lines().collect();
            let zeros = "0".repeat(64);
            lines[2] = &zeros;
            fs::write(entry.join("seal"), lines.join("\n")).unwrap();
        }),
        ("the seal is of another boot", |entry, _| {
            let seal = fs::read_to_string(entry.join("seal")).unwrap();
            let boot = seal.lines().nth(1).unwrap();
            fs::write(entry.join("seal"), seal.replace(boot, "another")).unwrap();
            fs::write(entry.join("layer/more"), "").unwrap();
        }),
        ("the seal is a pipe", |entry, _| {
            fs::remove_file(entry.join("seal")).unwrap();
            mknodat(CWD, entry.join("seal"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
        ("the seal is a directory", |entry, _| {
            fs::remove_file(entry.join("seal")).unwrap();
            fs::create_dir(entry.join("seal")).unwrap();
        }),
        ("the layer is removed", |entry, _| fs::remove_dir_all(entry.join("layer")).unwrap()),
        ("the layer is a link", |entry, elsewhere| {
            fs::remove_dir_all(entry.join("layer")).unwrap();
            symlink(elsewhere, entry.join("layer")).unwrap();
        }),
        ("the layer has one more file", |entry, _| fs::write(entry.join("layer/more"), "").unwrap()),
        ("the layer has another mode", |entry, _| {
            fs::set_permissions(entry.join("layer"), Permissions::from_mode(0o711)).unwrap();
        }),
        ("the entry is a link", |entry, elsewhere| {
            fs::remove_dir_all(entry).unwrap();
            symlink(elsewhere, entry).unwrap();
        }),
        ("others can write to the entry", |entry, _| {
            fs::write(entry.join("layer/more"), "").unwrap();
            fs::set_permissions(entry, Permissions::from_mode(0o777)).unwrap();
        }),
    ];
    for who in everybody() {
        let mut action = Action::new(who, COMMAND);
        let cache = action.use_cache();
        let expected = passes(&action);
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("seal"), "kept").unwrap();
        fs::create_dir(elsewhere.path().join("layer")).unwrap();
        for (what, damage) in damages {
            let entries = whole(&cache);
            for entry in &entries {
                damage(entry, elsewhere.path());
            }
            assert_eq!(passes(&action), expected, "{what}");
            assert_eq!(fs::read_to_string(elsewhere.path().join("seal")).unwrap(), "kept", "{what}");
            // What cannot be trusted stays as it is, and is not used.
            for entry in entries {
                if entry.is_symlink() {
                    fs::remove_file(entry).unwrap();
                } else if fs::metadata(&entry).unwrap().permissions().mode() & 0o777 == 0o777 {
                    assert!(entry.join("layer/more").exists());
                    fs::remove_dir_all(entry).unwrap();
                }
            }
            assert_eq!(passes(&action), expected, "after: {what}");
            assert_eq!(whole(&cache).len(), 3, "{what}");
        }
    }
}

/// Replaces a layer by a pipe, starts a step that fills the cache from it, and stops in the middle of the
/// layer. Returns the step, the other end of the pipe, and the layer.
fn in_the_middle(action: &Action, cache: &Path) -> (Child, fs::File, Vec<u8>) {
    let path = action.dir().join("layers/1");
    let layer = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let step = action.spawn();
    // Opening waits for the reader, which opens the layer when it fills its entry.
    let mut pipe = fs::File::options().write(true).open(&path).unwrap();
    pipe.write_all(&layer[..layer.len() / 2]).unwrap();
    eventually("two layers are whole, and one is being unpacked", || {
        let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
        whole(cache).len() == 2 && entries.filter(|entry| entry.join("layer").exists()).count() == 3
    });
    fs::remove_file(&path).unwrap();
    fs::write(&path, &layer).unwrap();
    (step, pipe, layer)
}

#[test]
fn a_kill_in_the_middle_leaves_an_entry_that_is_filled_again() {
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, COMMAND);
        let cache = action.use_cache();
        let (mut step, pipe, _) = in_the_middle(&action, &cache);
        step.kill().unwrap();
        step.wait().unwrap();
        drop(pipe);
        assert_eq!(whole(&cache).len(), 2);
        passes(&action);
        assert_eq!(whole(&cache).len(), 3);
    }
}

#[test]
fn a_step_does_not_wait_for_another_one_that_fills_the_cache() {
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, COMMAND);
        let cache = action.use_cache();
        let (mut step, mut pipe, layer) = in_the_middle(&action, &cache);
        passes(&action);
        assert_eq!(whole(&cache).len(), 2);
        pipe.write_all(&layer[layer.len() / 2..]).unwrap();
        drop(pipe);
        assert!(step.wait().unwrap().success());
        assert_eq!(whole(&cache).len(), 3);
    }
}

#[test]
fn steps_that_begin_at_once_share_what_one_of_them_unpacks() {
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, COMMAND);
        let cache = action.use_cache();
        let mut actions: Vec<Action> = (0..6).map(|_| Action::new(who, COMMAND)).collect();
        for action in &mut actions {
            action.cache = Some(cache.clone());
        }
        let steps: Vec<Child> = actions.iter().map(Action::spawn).collect();
        for mut step in steps {
            assert!(step.wait().unwrap().success());
        }
        assert_eq!(whole(&cache).len(), 3);
    }
}

#[test]
fn a_full_disk_costs_only_the_cache() {
    let Some(disk) = Filesystem::tmpfs(1) else { return };
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, COMMAND);
        let cache = disk.dir().join("cache");
        fs::create_dir(&cache).unwrap();
        action.cache = Some(cache.clone());
        passes(&action);
        assert!(whole(&cache).len() < 3, "the image has more than a megabyte");
        passes(&action);
    }
}

#[test]
fn a_cache_that_others_can_write_to_is_reported_and_not_used() {
    for who in everybody() {
        let mut action = Action::new(who, COMMAND);
        let cache = action.use_cache();
        fs::set_permissions(&cache, Permissions::from_mode(0o777)).unwrap();
        let ended = action.run();
        assert!(ended.code == Some(0) && ended.stdout().ends_with("\nmade\n"), "{ended:?}");
        let why = ended.output.unwrap().cache_unused.unwrap();
        assert!(why.contains("no other user may write to it") && why.contains(cache.to_str().unwrap()), "{why}");
        assert!(whole(&cache).is_empty());
    }
}
