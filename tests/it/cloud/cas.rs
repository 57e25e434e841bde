//! Blobs to a real engine and back.

use std::{fs, io::Write, time::Duration};

use hm_exec::remote::{Blob, Cas, Digest, Endpoint, RemoteErrorKind, Retry, Uploaded};

use crate::support::{
    remote_engine::TestEngine,
    stock_engine::{Habits, StockEngine},
};

/// Returns blobs of these sizes that no engine has.
fn blobs(sizes: &[usize]) -> Vec<Blob> {
    let seed = uuid::Uuid::new_v4();
    let blob = |(index, size): (usize, &usize)| {
        let mut bytes: Vec<u8> =
            seed.as_bytes().iter().chain(&index.to_le_bytes()).copied().cycle().take(*size).collect();
        bytes.rotate_left(index % size.max(&1));
        Blob::of_bytes(bytes)
    };
    sizes.iter().enumerate().map(blob).collect()
}

#[tokio::test]
async fn blobs_of_all_sizes_are_uploaded_once_and_downloaded() {
    let Some(engine) = TestEngine::start() else { return };
    let cas = engine.cas();
    let mut sizes = vec![100; 500];
    sizes.extend([1 << 20, 3 << 20, (4 << 20) - 1, 4 << 20, 9 << 20]);
    let mut sent = blobs(&sizes);
    sent.push(sent[0].clone());
    let bytes: usize = sizes.iter().sum();
    assert_eq!(cas.upload(sent.clone()).await.unwrap(), Uploaded { blobs: 505, bytes: bytes as u64 });
    assert_eq!(cas.upload(sent.clone()).await.unwrap(), Uploaded::default());
    let digests: Vec<Digest> = sent.iter().take(505).map(|blob| blob.digest).collect();
    let read = cas.read_many(digests).await.unwrap();
    assert_eq!(read.len(), 505);
    assert!(read.iter().all(|(digest, bytes)| Digest::of(bytes) == *digest));
}

#[tokio::test]
async fn two_hundred_megabytes_are_streamed_from_a_file_and_to_one() {
    let Some(engine) = TestEngine::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    let mut file = fs::File::create(&path).unwrap();
    let seed = uuid::Uuid::new_v4();
    for index in 0..200_u32 {
        let piece: Vec<u8> =
            seed.as_bytes().iter().chain(&index.to_le_bytes()).copied().cycle().take(1 << 20).collect();
        file.write_all(&piece).unwrap();
    }
    let digest = Digest::of_file(&path).unwrap();
    let cas = engine.cas();
    assert_eq!(cas.upload(vec![Blob::of_file(digest, &path)]).await.unwrap().bytes, 200 << 20);
    let back = dir.path().join("back");
    cas.read_to_file(digest, &back).await.unwrap();
    assert_eq!(Digest::of_file(&back).unwrap(), digest);
}

#[tokio::test]
async fn missing_blobs_are_named() {
    let Some(engine) = TestEngine::start() else { return };
    let cas = engine.cas();
    let nowhere = Digest::of(uuid::Uuid::new_v4().as_bytes());
    let dir = tempfile::tempdir().unwrap();
    for error in [
        cas.read(nowhere, 100).await.unwrap_err(),
        cas.read_many(vec![nowhere]).await.unwrap_err(),
        cas.read_to_file(nowhere, &dir.path().join("file")).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.missing()), (RemoteErrorKind::MissingBlobs, &[nowhere][..]), "{error}");
    }
    assert!(cas.find_missing([nowhere]).await.unwrap().contains(&nowhere));
}

#[tokio::test]
async fn a_blob_that_does_not_match_its_digest_is_refused() {
    let Some(engine) = TestEngine::start() else { return };
    let mut wrong = blobs(&[100, 5 << 20]);
    for blob in &mut wrong {
        blob.digest.hash[0] ^= 1;
        let error = engine.cas().upload(vec![blob.clone()]).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    let left = engine.cas().find_missing(wrong.iter().map(|blob| blob.digest)).await.unwrap();
    assert_eq!(left.len(), 2);
}

#[tokio::test]
async fn the_error_names_a_file_that_becomes_shorter() {
    let Some(engine) = TestEngine::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    for size in [100, 5 << 20] {
        let path = dir.path().join(size.to_string());
        fs::write(&path, blobs(&[size])[0].digest.hash).unwrap();
        let digest = Digest { size_bytes: size as u64, ..blobs(&[size])[0].digest };
        let error = engine.cas().upload(vec![Blob::of_file(digest, &path)]).await.unwrap_err();
        assert_eq!(error.kind(), RemoteErrorKind::Local, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_stands_still_is_an_error_that_may_pass() {
    let engine = StockEngine::start(Habits { stalls: true, ..Habits::default() });
    let retry =
        Retry { attempts: 2, first: Duration::from_millis(1), idle: Duration::from_millis(200), ..Retry::default() };
    let cas = Cas::new(Endpoint::with_retry(engine.options(), retry).unwrap());
    // More than a connection holds without a reader.
    let blob = blobs(&[20 << 20]).remove(0);
    let digest = blob.digest;
    for error in [cas.upload(vec![blob]).await.unwrap_err(), cas.read(digest, digest.size_bytes).await.unwrap_err()] {
        assert_eq!(error.kind(), RemoteErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("nothing was transferred"), "{error}");
    }
}
