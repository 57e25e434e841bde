//! A session with an engine that follows a script, on a paused clock.

use std::collections::VecDeque;

use super::*;
use crate::sync::Mutex;

/// An engine that follows a script. At its end there is no more work, and the worker is stopped.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Result<Answer, Status>>>,
    /// The sessions that were reported to it; a session that is being created has no name yet.
    told: Mutex<Vec<BotSession>>,
    stop: WorkerStop,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Result<Answer, Status>>) -> Self {
        Self { answers: Mutex::new(answers.into_iter().collect()), ..Self::default() }
    }

    fn next(&self, session: BotSession) -> Result<Answer, Status> {
        let version = self.told.lock().len().to_string();
        self.told.lock().push(session);
        let answer = self.answers.lock().pop_front().unwrap_or_else(|| {
            self.stop.drain();
            Ok(Answer::default())
        });
        answer.map(|mut answer| {
            answer.session.name = "sessions/1".into();
            answer.session.version = version;
            answer
        })
    }

    /// Returns the ids and states of the leases that were reported, call by call.
    fn leases(&self) -> Vec<Vec<(String, LeaseState)>> {
        let of = |lease: &Lease| (lease.id.clone(), LeaseState::try_from(lease.state).unwrap());
        self.told.lock().iter().map(|session| session.leases.iter().map(of).collect()).collect()
    }

    fn was_told_of_the_end(&self) -> bool {
        self.leases().iter().flatten().any(|(_, state)| *state == LeaseState::Completed)
    }
}

impl Bots for Script {
    async fn create(&self, session: BotSession, _: Duration) -> Result<Answer, Status> {
        self.next(session)
    }

    async fn update(&self, session: BotSession, _: Duration) -> Result<Answer, Status> {
        self.next(session)
    }

    fn tell(&self, status: &Status) -> String {
        status.message().to_owned()
    }
}

/// Runs leases that end at once, except for those named `long`.
#[derive(Default)]
struct Steps {
    started: Mutex<Vec<String>>,
    cancelled: Mutex<Vec<String>>,
    streams: Mutex<Vec<String>>,
}

impl Execute for Steps {
    async fn execute(
        &self,
        lease: Lease,
        mut streams: watch::Receiver<Streams>,
        cancel: CancellationToken,
    ) -> Completed {
        self.started.lock().push(lease.id.clone());
        if lease.id.starts_with("long") {
            cancel.cancelled().await;
            self.cancelled.lock().push(lease.id);
        } else if lease.id.starts_with("shown") {
            let known = streams.wait_for(|known| !known.stdout.is_empty()).await.unwrap().stdout.clone();
            self.streams.lock().push(known);
        }
        Completed::default()
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<WorkerNote>>);

impl WorkerNotes for Heard {
    fn note(&self, note: WorkerNote) {
        self.0.lock().push(note);
    }
}

fn with(id: &str) -> Result<Answer, Status> {
    let lease = Lease { id: id.into(), state: LeaseState::Active as i32, ..Lease::default() };
    Ok(Answer { session: BotSession { leases: vec![lease], ..BotSession::default() }, ..Answer::default() })
}

fn idle() -> Result<Answer, Status> {
    Ok(Answer::default())
}

async fn play(answers: impl IntoIterator<Item = Result<Answer, Status>>) -> (Script, Steps, Heard) {
    let (script, steps, heard) = (Script::new(answers), Steps::default(), Heard::default());
    let slot = Slot { number: 1, bot_id: "bot.1".into(), worker: Worker::default() };
    serve(&slot, &script, &steps, &script.stop, &heard).await;
    (script, steps, heard)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_run_and_its_end_is_told_once() {
    let (script, steps, heard) = play([idle(), with("a"), idle()]).await;
    assert_eq!(*steps.started.lock(), ["a"]);
    let ended = vec![("a".to_owned(), LeaseState::Completed)];
    assert_eq!(script.leases(), [vec![], vec![], ended, vec![], vec![]]);
    let told = script.told.lock();
    // The engine's version is sent back to it, and it is informed that the worker leaves.
    assert_eq!(told.iter().map(|it| &*it.version).collect::<Vec<_>>(), ["", "0", "1", "2", "3"]);
    assert_eq!(told.last().unwrap().status, BotStatus::BotTerminating as i32);
    assert_eq!(heard.0.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_vanished_is_ended_and_never_told() {
    let (script, steps, _) = play([idle(), with("long"), with("long"), idle()]).await;
    assert_eq!(*steps.cancelled.lock(), ["long"]);
    assert!(!script.was_told_of_the_end());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_changes_nothing() {
    let away = || Err(Status::unavailable("away"));
    let (script, steps, heard) = play([away(), idle(), with("a"), away(), away(), idle()]).await;
    assert_eq!(*steps.started.lock(), ["a"]);
    let ends = script.leases().iter().flatten().filter(|(_, state)| *state == LeaseState::Completed).count();
    assert_eq!(ends, 3, "told until it was heard");
    let names: Vec<String> = script.told.lock().iter().map(|it| it.name.clone()).collect();
    assert_eq!(names.iter().filter(|name| name.is_empty()).count(), 2, "the session stays: {names:?}");
    let away = heard.0.lock().iter().filter(|note| matches!(note, WorkerNote::Disconnected { .. })).count();
    assert_eq!(away, 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_engine_forgot_is_begun_anew_without_its_lease() {
    for code in [Code::NotFound, Code::InvalidArgument, Code::DataLoss] {
        let (script, steps, _) = play([idle(), with("long"), Err(Status::new(code, "who?")), idle(), with("b")]).await;
        assert_eq!(*steps.started.lock(), ["long", "b"]);
        assert_eq!(*steps.cancelled.lock(), ["long"]);
        let creations = script.told.lock().iter().filter(|session| session.name.is_empty()).count();
        assert_eq!(creations, 2);
        assert!(script.leases().iter().flatten().all(|(id, state)| id != "long" || *state == LeaseState::Active));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_comes_back_under_its_name_is_run_again() {
    let (_, steps, _) = play([idle(), with("a"), with("a"), idle()]).await;
    assert_eq!(*steps.started.lock(), ["a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn log_streams_that_are_told_later_are_passed_on() {
    let shown = |name: &str| {
        with("shown").map(|answer| Answer { streams: Streams { stdout: name.into(), stderr: String::new() }, ..answer })
    };
    let (script, steps, _) = play([idle(), shown(""), shown(""), shown("stream"), idle()]).await;
    assert_eq!(*steps.streams.lock(), ["stream"]);
    assert!(script.was_told_of_the_end());
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_what_runs_and_insisting_does_not() {
    let (script, steps, heard) = (Script::new([idle(), with("long")]), Steps::default(), Heard::default());
    let slot = Slot { number: 1, bot_id: "bot.1".into(), worker: Worker::default() };
    let answer = with("long").unwrap();
    script.answers.lock().extend((0..10).map(|_| Ok(answer.clone())));
    let work = serve(&slot, &script, &steps, &script.stop, &heard);
    tokio::pin!(work);
    script.stop.drain();
    // Draining an idle session ends it at once.
    (&mut work).await;
    assert!(steps.started.lock().is_empty());

    let (script, steps) = (Script::new([idle(), with("long")]), Steps::default());
    script.answers.lock().extend((0..10).map(|_| Ok(answer.clone())));
    let insist = async {
        while steps.started.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        script.stop.drain();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(steps.cancelled.lock().is_empty());
        script.stop.cancel();
    };
    tokio::join!(serve(&slot, &script, &steps, &script.stop, &heard), insist);
    assert_eq!(*steps.cancelled.lock(), ["long"]);
    assert!(!script.was_told_of_the_end());
}
