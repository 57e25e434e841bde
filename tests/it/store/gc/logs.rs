//! Compression of logs: of runs that have ended, and of cached steps.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use hm_exec::{event::LogFile, store::Forget};
use uuid::Uuid;

use super::{cache, commit, forget, gc, key};
use crate::support::store::Bench;

fn text() -> Vec<u8> {
    (0..20_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
}

/// Creates a run with a long log, and returns the log and the journal.
fn run(bench: &Bench, n: u128) -> (PathBuf, File) {
    let dir = bench.store.runs().dir(Uuid::from_u128(n));
    fs::create_dir_all(dir.join("logs")).unwrap();
    fs::write(dir.join("logs/0-1.log"), text()).unwrap();
    (dir.join("logs/0-1.log"), File::create(dir.join("journal")).unwrap())
}

fn zst(log: &std::path::Path) -> PathBuf {
    format!("{}.zst", log.display()).into()
}

fn read(log: &std::path::Path) -> Vec<u8> {
    let mut found = Vec::new();
    LogFile::open(log).unwrap().read_to_end(&mut found).unwrap();
    found
}

#[test]
fn a_log_of_a_run_and_of_a_cached_step_is_compressed_once() {
    let bench = Bench::new();
    bench.put("file", "x");
    let (of_run, _journal) = run(&bench, 1);
    bench.store.steps().keep_log(&key(1), &of_run).unwrap();
    cache(&bench.store, &commit(&bench, &bench.store, None, 1000), 1);
    let of_step = bench.store.steps().log(&key(1));
    let freed = bench.store.compress_logs().unwrap();
    let compressed = fs::metadata(zst(&of_run)).unwrap();
    assert!(!of_run.exists() && !of_step.exists());
    assert_eq!(compressed.ino(), fs::metadata(zst(&of_step)).unwrap().ino());
    assert_eq!(freed, text().len() as u64 - compressed.len());
    assert!(read(&of_run) == text() && read(&of_step) == text());
    assert_eq!(bench.store.compress_logs().unwrap(), 0);

    // The log of a newer result takes its place.
    let newer = bench.store.dir().join("newer");
    fs::write(&newer, "newer\n").unwrap();
    bench.store.steps().keep_log(&key(1), &newer).unwrap();
    assert_eq!(read(&of_step), b"newer\n");
    assert!(!zst(&of_step).exists() && read(&of_run) == text());
}

#[test]
fn logs_of_a_run_that_is_still_going_on_stay_until_it_ends() {
    let bench = Bench::new();
    bench.put("file", "x");
    let (of_run, journal) = run(&bench, 1);
    journal.try_lock_shared().unwrap();
    bench.store.steps().keep_log(&key(1), &of_run).unwrap();
    cache(&bench.store, &commit(&bench, &bench.store, None, 1000), 1);
    let of_step = bench.store.steps().log(&key(1));
    assert_eq!(bench.store.compress_logs().unwrap(), 0);
    assert!(of_run.exists() && of_step.exists());
    drop(journal);
    gc(&bench.store, u64::MAX);
    assert!(zst(&of_run).exists() && zst(&of_step).exists() && !of_run.exists() && !of_step.exists());
    assert!(read(&of_step) == text());
}

#[test]
fn a_compressed_log_goes_with_its_cached_step_and_counts_once() {
    let bench = Bench::new();
    bench.put("file", "x");
    let (of_run, _journal) = run(&bench, 1);
    bench.store.steps().keep_log(&key(1), &of_run).unwrap();
    cache(&bench.store, &commit(&bench, &bench.store, None, 1000), 1);
    let raw = gc_bytes(&bench);
    let report = gc(&bench.store, u64::MAX);
    assert!(report.freed_bytes > 0 && report.bytes < raw, "{report:?}");
    let of_step = bench.store.steps().log(&key(1));
    forget(&bench.store, Forget::Cached);
    assert!(!of_step.exists() && !zst(&of_step).exists());
    assert!(read(&of_run) == text());
}

fn gc_bytes(bench: &Bench) -> u64 {
    let mut request = hm_exec::store::GcRequest::new(super::limits(&bench.store, u64::MAX));
    request.dry_run = true;
    let report = bench.store.gc(&request).unwrap().unwrap();
    assert_eq!(report.freed_bytes, 0);
    report.bytes
}
