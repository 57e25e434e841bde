//! Creates a run's journal.

use std::{
    borrow::Cow,
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::{sync::Notify, time::Instant};

use super::{
    EventBus, EventStream, EventWriter, RunMeta,
    attempt::Attempts,
    journal::Journal,
    logs::RunFiles,
    mask::Masker,
    record::{FORMAT_VERSION, MAGIC, MAX_HEADER_BYTES, clip_commands, encode_header},
    shared::{Pending, Shared},
    temporary,
    wake::Published,
};
use crate::{model::Secrets, sync::Mutex};

/// The location of a run's journal and logs.
#[derive(Debug)]
pub enum RunDir {
    /// This directory, which is made, and kept. Only its owner may enter it.
    Kept(PathBuf),
    /// A separate directory that is removed with the last of writer, buses and readers. If their processes
    /// are killed, a later process of the same user removes it.
    Temporary,
}

/// Creates a run's journal, writes its header, and returns the writer, the bus and the stream.
///
/// Secrets are masked in display names, images and commands, and long commands are clipped. Keys and the
/// names of runners are identifiers, and are not masked.
///
/// # Errors
/// Returns an error if the directory or the journal cannot be made, or if the directory has a journal
/// already.
pub fn create(dir: RunDir, mut meta: RunMeta, secrets: &Secrets) -> io::Result<(EventWriter, EventBus, EventStream)> {
    let invalid = |error: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let masker = Masker::new(secrets).map_err(|error| invalid(&error))?;
    if let Some(masker) = &masker {
        for step in &mut meta.steps {
            step.display_name = masker.mask_text(&step.display_name).into();
            step.image = step.image.take().map(|image| masker.mask_text(&image).into());
        }
        for command in &mut meta.details.commands {
            // Most have no secret, and stay the text that the plan has.
            if let Cow::Owned(masked) = masker.mask_text(&command.text) {
                command.text = masked.into();
            }
        }
        if let Some(url) = meta.server.as_mut().and_then(|server| server.watch_url.as_mut()) {
            *url = masker.mask_text(url).into_owned();
        }
    }
    // After masking, because a part of a secret is not found.
    clip_commands(&mut meta.details.commands);
    let mut header = Vec::from(MAGIC);
    header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    encode_header(&mut header, &meta).map_err(|error| invalid(&error))?;
    if header.len() > MAX_HEADER_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the plan's keys and names are too long to be recorded",
        ));
    }

    let (dir, temporary) = match dir {
        RunDir::Kept(dir) => (dir, None),
        RunDir::Temporary => {
            let temporary = temporary::create()?;
            (temporary.path().to_owned(), Some(temporary))
        }
    };
    let (files, journal) = RunFiles::create(&dir, temporary)?;
    let journal = Arc::new(journal);
    let mut end = Journal::new(journal.clone());
    end.append(&header)?;
    drop(header);
    let shared = Arc::new(Shared {
        masker,
        started: Instant::now(),
        attempts: Mutex::new(Attempts::new(meta.steps.len())),
        pending: Mutex::new(Pending::default()),
        dirty: Notify::new(),
        journal,
        first_record: end.len(),
        published: Published::new(end.len()),
        wants_progress: AtomicBool::new(false),
        has_warned: AtomicBool::new(false),
        files,
        run: Arc::new(meta.into()),
    });
    let events = EventStream::of_journal(shared.clone());
    Ok((EventWriter::new(shared.clone(), end), EventBus::new(shared), events))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::event::{BuildRef, PlanSummary};

    #[test]
    fn a_temporary_directory_goes_with_the_last_of_writer_buses_and_readers() {
        let meta = RunMeta {
            build: BuildRef { run_id: uuid::Uuid::nil(), number: None, org: None, pipeline: "ci".into() },
            plan: PlanSummary { step_count: 0, chain_count: 0, default_runner: "noop".into() },
            started_at: chrono::Utc::now(),
            steps: vec![],
            runners: vec![],
            server: None,
            details: Default::default(),
        };
        let (writer, bus, events) = create(RunDir::Temporary, meta, &Secrets::new()).unwrap();
        let dir: Box<Path> = events.dir().into();
        assert!(dir.join("journal").is_file());
        drop(events);
        drop(writer);
        assert!(dir.join("journal").is_file());
        drop(bus);
        assert!(!dir.exists());
    }
}
