//! The part of a large source that is uploaded.

use std::{fs, sync::Arc, sync::atomic::AtomicBool};

use hm_exec::{
    remote::Uploaded,
    runner::cloud::CloudRunner,
    source::{self, SourceTimes},
    store::Store,
};

use crate::support::remote_engine::TestEngine;

const DIRS: usize = 200;
const FILES: usize = 100;

#[tokio::test]
async fn one_changed_file_of_twenty_thousand_uploads_only_itself_and_its_parent_directories() {
    let Some(engine) = TestEngine::start() else { return };
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    let seed = uuid::Uuid::new_v4();
    for dir in 0..DIRS {
        let dir_path = source.join(format!("a/{dir}"));
        fs::create_dir_all(&dir_path).unwrap();
        for file in 0..FILES {
            fs::write(dir_path.join(file.to_string()), format!("{seed} {dir} {file}")).unwrap();
        }
    }
    let store = Store::open(&top.path().join("store")).unwrap();
    let freeze = || Arc::new(source::freeze(&store, &source, SourceTimes::Normal, &AtomicBool::new(false)).unwrap());
    let runner = || CloudRunner::builder().endpoint(engine.options()).store(Arc::clone(&store)).build();

    let first = runner();
    let frozen = freeze();
    let whole = first.upload_source(&frozen).await.unwrap();
    // The blobs are each file, its directory, `a`, `workspace`, the directory that contains `workspace`, and
    // the list of modes and times.
    assert_eq!(first.uploaded().blobs, (DIRS * FILES + DIRS + 4) as u64);
    assert_eq!(first.upload_source(&frozen).await.unwrap(), whole);

    fs::write(source.join("a/7/7"), format!("{seed} changed")).unwrap();
    let changed = freeze();
    // As in another process: only the content of the store and of the engine is known.
    let second = runner();
    assert_ne!(second.upload_source(&changed).await.unwrap(), whole);
    // The list of modes and times is the same.
    assert_eq!(second.uploaded().blobs, 5, "the file, `7`, `a`, `workspace`, and the directory that has that");
    let third = runner();
    third.upload_source(&changed).await.unwrap();
    assert_eq!(third.uploaded(), Uploaded::default());
}
