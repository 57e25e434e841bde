//! Log streams of the stand-in.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Response, body::Frame};
use serde_json::json;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Answer, Shared, State, error, script::LogFault};

type Pieces = mpsc::UnboundedSender<std::io::Result<Bytes>>;

pub(super) fn answer(shared: &Arc<Shared>, job: &str, query: &str) -> Answer {
    let mut state = shared.state();
    let is_valid = |token: &str| state.log_tokens.iter().skip(state.expired).any(|known| known == token);
    if !query.strip_prefix("token=").is_some_and(is_valid) {
        return error(401, "unauthorized", "the token is not valid");
    }
    let Some((build, at)) = find(&state, job.parse().unwrap_or_default()) else {
        return error(404, "job_not_found", "no such job");
    };
    let fault = state.builds[build].script.jobs[at].log_faults.pop_front();
    if let Some(LogFault::Status(status)) = fault {
        return error(status, "log_fault", "by request");
    }
    drop(state);
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(send(Arc::clone(shared), (build, at), fault, sender));
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    let body = StreamBody::new(pieces).boxed_unsync();
    Ok(Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
}

fn find(state: &State, id: Uuid) -> Option<(usize, usize)> {
    let mut builds = state.builds.iter().enumerate();
    builds.find_map(|(build, it)| Some((build, it.ids.iter().position(|known| *known == id)?)))
}

/// Sends a log. Returns early if the client is gone.
async fn send(shared: Arc<Shared>, (build, at): (usize, usize), fault: Option<LogFault>, pieces: Pieces) -> Option<()> {
    let mut changes = shared.changes.subscribe();
    if fault == Some(LogFault::Silent) {
        std::future::pending::<()>().await;
    }
    let piece = shared.state().piece;
    let say = |text: String| {
        let parts = text.as_bytes().chunks(piece.min(text.len().max(1)));
        parts.map(|part| pieces.send(Ok(Bytes::copy_from_slice(part))).ok()).collect::<Option<Vec<()>>>().map(drop)
    };
    say(": hello\n\n".into())?;
    if fault == Some(LogFault::Malformed) {
        return say("event: chunk\ndata: {not json\n\n".into());
    }
    let (first, sent) = {
        let state = shared.state();
        let build = &state.builds[build];
        (build.parts(at).start, build.script.jobs[at].sent)
    };
    let history: Vec<_> = (first..sent).map(|n| chunk(&shared, (build, at), n)).collect();
    let mut next = first + history.len();
    for _ in 0..if fault == Some(LogFault::HistoryTwice) { 2 } else { 1 } {
        say(format!("event: history\ndata: {}\n\n", json!({ "chunks": history })))?;
    }
    let mut said = 0;
    loop {
        let (count, has_ended) = {
            let state = shared.state();
            let build = &state.builds[build];
            (build.parts(at).end, build.has_ended(at))
        };
        while next < count {
            let closes = matches!(fault, Some(LogFault::CloseAfter(n)) if n == said);
            if closes {
                pieces.send(Err(std::io::Error::other("closed by a fault"))).ok()?;
                return None;
            }
            if matches!(fault, Some(LogFault::EndAfter(n)) if n == said) {
                return None;
            }
            let text = format!("id: {next}\nevent: chunk\ndata: {}\n\n", chunk(&shared, (build, at), next));
            if fault == Some(LogFault::HalfPart) {
                say(text[..text.len() / 2].to_owned())?;
                pieces.send(Err(std::io::Error::other("closed by a fault"))).ok()?;
                return None;
            }
            say(text)?;
            next += 1;
            said += 1;
            let mut state = shared.state();
            let sent = &mut state.builds[build].script.jobs[at].sent;
            *sent = next.max(*sent);
        }
        if has_ended {
            return say("event: done\ndata: {}\n\n".into());
        }
        changes.changed().await.ok()?;
    }
}

fn chunk(shared: &Shared, (build, at): (usize, usize), n: usize) -> serde_json::Value {
    let state = shared.state();
    let build = &state.builds[build];
    let (kind, text) = &build.script.jobs[at].chunks[n];
    let seq = build.seq(at, n);
    json!({"seq": seq, "stream_kind": kind, "content": text, "ts": if n.is_multiple_of(2) { Some(1_767_225_601_000_000_000_i64) } else { None }})
}
