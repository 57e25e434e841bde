use std::{fs, io::Write, os::unix::fs::PermissionsExt};

use proptest::prelude::*;

use super::{
    compress::write_compressed,
    seekable::{FRAME_BYTES, Writer},
    *,
};

/// Returns the compressed form of `content`, as a file.
fn seekable(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (raw, path) = (dir.path().join("raw"), dir.path().join("log"));
    fs::write(&raw, content).unwrap();
    write_compressed(&File::open(&raw).unwrap(), &compressed_path(&path)).unwrap();
    (dir, path)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    LogFile::open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Returns text of `len` bytes in which every place looks different.
fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|n| format!("line {n} of a log\n").into_bytes()).take(len).collect()
}

#[test]
fn a_log_is_the_same_before_and_after_it_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, tmp) = (dir.path().join("log"), dir.path().join("tmp"));
    let content = text(3 * FRAME_BYTES + 7);
    fs::write(&path, &content).unwrap();
    let mut begun = LogFile::open(&path).unwrap();
    let compressed = compress(&path, &tmp).unwrap().unwrap();
    assert!(!path.exists() && !tmp.exists() && !compressed.is_shared);
    let len = fs::metadata(&compressed.path).unwrap().len();
    assert!(len < content.len() as u64 / 5, "{len}");
    assert_eq!(compressed.freed_bytes, content.len() as u64 - len);
    assert_eq!(fs::metadata(&compressed.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(read(&path).unwrap() == content);
    // A reader that has the raw file goes on with it.
    assert!(matches!(begun.content, Content::Raw(_)));
    let mut seen = Vec::new();
    begun.read_to_end(&mut seen).unwrap();
    assert!(seen == content);
    // A second compression has nothing to do.
    assert!(compress(&path, &tmp).unwrap().is_none());
    // A log that is written anew takes precedence.
    fs::write(&path, "new").unwrap();
    assert_eq!(read(&path).unwrap(), b"new");
}

#[test]
fn any_place_of_a_compressed_log_is_found() {
    let content = text(3 * FRAME_BYTES + 7);
    let (_dir, path) = seekable(&content);
    let mut log = LogFile::open(&path).unwrap();
    assert_eq!(log.size().unwrap(), content.len() as u64);
    let mut buffer = [0; 100];
    for at in [2 * FRAME_BYTES, 0, FRAME_BYTES - 1, FRAME_BYTES + 1, 3 * FRAME_BYTES + 6, 2 * FRAME_BYTES + 99] {
        log.seek(SeekFrom::Start(at as u64)).unwrap();
        let read = log.read(&mut buffer).unwrap();
        assert!(read > 0 && buffer[..read] == content[at..at + read], "{at}");
    }
    assert_eq!(log.seek(SeekFrom::End(-3)).unwrap(), content.len() as u64 - 3);
    assert_eq!(log.read(&mut buffer).unwrap(), 3);
    assert_eq!(log.read(&mut buffer).unwrap(), 0);
    assert!(log.seek(SeekFrom::Current(i64::MIN)).is_err());
    log.seek(SeekFrom::Start(u64::MAX)).unwrap();
    assert_eq!(log.read(&mut buffer).unwrap(), 0);
}

#[test]
fn other_programs_read_a_compressed_log_as_one_stream() {
    let content = text(2 * FRAME_BYTES + 1);
    let (_dir, path) = seekable(&content);
    let decoded = zstd::decode_all(File::open(compressed_path(&path)).unwrap()).unwrap();
    assert!(decoded == content);
}

#[test]
fn an_empty_log_has_no_frames() {
    let (_dir, path) = seekable(b"");
    assert_eq!(read(&path).unwrap(), b"");
}

#[test]
fn a_compressed_log_that_was_cut_anywhere_is_an_error() {
    let (_dir, path) = seekable(&text(FRAME_BYTES + 1));
    let place = compressed_path(&path);
    let whole = fs::read(&place).unwrap();
    for len in (0..whole.len()).step_by(97).chain(whole.len() - 40..whole.len()) {
        fs::write(&place, &whole[..len]).unwrap();
        let kind = LogFile::open(&path).unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::InvalidData), "{len}: {kind}");
    }
}

#[test]
fn a_table_that_promises_too_much_is_refused() {
    let table = |entries: &[(u32, u32)], frames: u32| {
        let mut file = Vec::from([b'x'; 10]);
        let len = u32::try_from(entries.len()).unwrap() * 8 + 9;
        let words = [0x184D_2A5E, len].into_iter().chain(entries.iter().flat_map(|(a, b)| [*a, *b]));
        words.chain([frames]).for_each(|word| file.extend_from_slice(&word.to_le_bytes()));
        file.push(0);
        file.extend_from_slice(&0x8F92_EAB1u32.to_le_bytes());
        file
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for (entries, frames) in [
        (&[(10, u32::MAX)][..], 1),
        (&[(9, 5)], 1),
        (&[(u32::MAX, 5)], 1),
        (&[(10, 5)], 2),
        (&[(10, 5)], u32::MAX),
        (&[], 0),
    ] {
        fs::write(compressed_path(&path), table(entries, frames)).unwrap();
        assert_eq!(LogFile::open(&path).unwrap_err().kind(), ErrorKind::InvalidData, "{entries:?} {frames}");
    }
    // The table is right, but there is no frame.
    fs::write(compressed_path(&path), table(&[(10, 5)], 1)).unwrap();
    assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn a_log_that_cannot_be_compressed_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "content").unwrap();
    // The temporary file cannot be made, or something is in the way.
    assert!(compress(&path, &dir.path().join("missing/tmp")).is_err());
    fs::create_dir(compressed_path(&path)).unwrap();
    assert!(compress(&path, &dir.path().join("tmp")).is_err());
    assert!(!dir.path().join("tmp").exists());
    assert_eq!(read(&path).unwrap(), b"content");
}

#[test]
fn a_log_that_was_replaced_meanwhile_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("log"), dir.path().join("raw"));
    fs::write(&raw, "old").unwrap();
    let old = File::open(&raw).unwrap();
    fs::write(&path, "new").unwrap();
    write_compressed(&old, &dir.path().join("tmp")).unwrap();
    assert!(compress::put(&path, &old, &dir.path().join("tmp")).unwrap().is_none());
    assert_eq!(read(&path).unwrap(), b"new");
    assert!(!compressed_path(&path).exists());
}

#[test]
fn only_long_logs_of_a_directory_are_compressed_and_the_rest_of_a_killed_compression_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (long, place) = (text(usize::try_from(MIN_BYTES).unwrap()), |name: &str| dir.path().join(name));
    assert!(!has_any_to_compress(dir.path()) && !has_any_to_compress(&place("missing")));
    fs::write(place("0-1.log"), &long).unwrap();
    fs::write(place("0-1.log.zst.new"), "half").unwrap();
    // Killed between the two steps: both forms are there.
    fs::write(place("1-1.log"), &long).unwrap();
    fs::write(place("1-1.log.zst"), "of another time").unwrap();
    fs::write(place("2-1.log"), &long[1..]).unwrap();
    fs::write(place("other"), &long).unwrap();
    fs::create_dir(place("3-1.log")).unwrap();
    assert!(has_any_to_compress(dir.path()));
    assert!(read(&place("1-1.log")).unwrap() == long);
    let mut count = 0;
    compress_dir(dir.path(), &mut |_| count += 1).unwrap();
    assert_eq!(count, 2);
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["0-1.log.zst", "1-1.log.zst", "2-1.log", "3-1.log", "other"]);
    for name in ["0-1.log", "1-1.log"] {
        assert!(read(&place(name)).unwrap() == long);
    }
    assert!(!has_any_to_compress(dir.path()));
    compress_dir(&place("missing"), &mut |_| count += 1).unwrap();
    assert_eq!(count, 2);
}

proptest! {
    #[test]
    fn a_changed_byte_never_changes_the_content(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let content = text(FRAME_BYTES + 5000);
        let (_dir, path) = seekable(&content);
        let mut file = fs::read(compressed_path(&path)).unwrap();
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        fs::write(compressed_path(&path), &file).unwrap();
        if let Ok(found) = read(&path) {
            prop_assert!(found == content);
        }
    }

    #[test]
    fn frames_of_any_size_are_read_back(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = Writer::new(File::create(compressed_path(&path)).unwrap()).unwrap();
        frames.iter().for_each(|frame| writer.frame(frame).unwrap());
        writer.finish().unwrap().flush().unwrap();
        prop_assert_eq!(read(&path).unwrap(), frames.concat());
    }

    #[test]
    fn no_file_makes_a_reader_panic(file in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(compressed_path(&path), &file).unwrap();
        let _ = read(&path);
    }
}
