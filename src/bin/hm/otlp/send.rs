//! Sends a trace to a collector: POST with protobuf, as OTLP specifies.

use std::{error::Error, io::Write, time::Duration};

use flate2::{Compression, write::GzEncoder};
use hm_exec::{event::mask, runner::Secrets};
use prost::Message;
use reqwest::{
    Certificate, Client, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    messages::{ExportTraceServiceResponse, Refusal},
    settings::Settings,
    spans::{Request, Trace},
};
use crate::{
    failure::{Failure, Outcome},
    reporter::text,
};

const PROTOBUF: &str = "application/x-protobuf";

/// The pauses before a request is sent again, if the collector is busy.
const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];

/// The most of an answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The length from which on a value of a header is masked in messages, in bytes.
const MIN_SECRET: usize = 6;

/// The length of a collector's message that is shown, in characters.
const MAX_MESSAGE: usize = 200;

/// What a collector did with a trace.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) spans: usize,
    /// How many of them it rejected.
    pub(crate) rejected: usize,
    /// What it says about that.
    pub(crate) message: String,
}

/// Why a collector did not take a request.
enum Problem {
    Network(reqwest::Error),
    Refused(StatusCode, String),
}

/// Sends a trace, within the time limit of the settings.
///
/// # Errors
/// Returns an error if the collector does not accept a part of it.
pub(crate) async fn send(settings: &Settings, trace: &Trace<'_>) -> Outcome<Sent> {
    let deadline = Instant::now() + settings.timeout;
    let failed = |why: String| {
        let why = if why.is_empty() { "unknown error".to_owned() } else { why };
        Failure::infrastructure(format_args!("failed to send the trace of the run to {}", settings.place()))
            .because(anyhow::anyhow!("{why}"))
    };
    let client = client(settings).map_err(|error| failed(cause(&error)))?;
    let mut sent = Sent::default();
    for request in trace.requests() {
        let spans = request.spans;
        let late = |_| failed(format!("there was no answer within {}", settings.time_limit()));
        match timeout_at(deadline, post(&client, settings, request, deadline)).await.map_err(late)? {
            Ok(answer) => {
                sent.spans += spans;
                let partial = answer.partial_success.unwrap_or_default();
                sent.rejected += usize::try_from(partial.rejected_spans).unwrap_or(0).min(spans);
                if !partial.error_message.is_empty() {
                    sent.message = shown(settings, &partial.error_message);
                }
            }
            Err(Problem::Network(error)) => return Err(failed(cause(&error))),
            Err(Problem::Refused(status, message)) => {
                let colon = if message.is_empty() { "" } else { ": " };
                return Err(failed(format!("it answered {status}{colon}{}", shown(settings, &message))));
            }
        }
    }
    Ok(sent)
}

fn client(settings: &Settings) -> reqwest::Result<Client> {
    let builder = Client::builder()
        // A redirect would send the headers to another host.
        .redirect(Policy::none())
        .user_agent(concat!("hm-exec/", env!("CARGO_PKG_VERSION")));
    match &settings.authorities {
        Some(pem) => builder.tls_certs_only(Certificate::from_pem_bundle(pem)?),
        None if settings.url.scheme() == "https" => builder,
        // A proxy could read the spans, and without encryption, this machine needs no authorities.
        None => builder.no_proxy().tls_certs_only([]),
    }
    .build()
}

/// Sends one request, again if the collector is busy. Gives up if it asks for more time than there is.
async fn post(
    client: &Client,
    settings: &Settings,
    request: Request,
    deadline: Instant,
) -> Result<ExportTraceServiceResponse, Problem> {
    let body = bytes::Bytes::from(if settings.is_compressed { gzip(&request.body) } else { request.body });
    let mut pauses = PAUSES.iter();
    loop {
        let mut post = client
            .post(settings.url.clone())
            .headers(settings.headers.clone())
            .header(CONTENT_TYPE, PROTOBUF)
            .body(body.clone());
        if settings.is_compressed {
            post = post.header(CONTENT_ENCODING, "gzip");
        }
        let mut response = post.send().await.map_err(Problem::Network)?;
        let status = response.status();
        if status.is_success() {
            // Proxies may answer without a message, which means success.
            let answer = read(&mut response).await.map_err(Problem::Network)?;
            return Ok(ExportTraceServiceResponse::decode(&*answer).unwrap_or_default());
        }
        let pause = pauses.next().filter(|_| is_busy(status)).map(|pause| (*pause).max(wanted_pause(&response)));
        // What a collector wants may be more than any clock shows.
        let is_in_time = |pause: &Duration| Instant::now().checked_add(*pause).is_some_and(|next| next < deadline);
        match pause.filter(is_in_time) {
            Some(pause) => sleep(pause).await,
            None => {
                let is_protobuf = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == PROTOBUF);
                let answer = read(&mut response).await.unwrap_or_default();
                let refusal = Refusal::decode(&*answer).ok().filter(|_| is_protobuf).unwrap_or_default();
                return Err(Problem::Refused(status, refusal.message));
            }
        }
    }
}

/// Returns whether the same request may succeed later.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Returns for how long a busy collector wants no request.
fn wanted_pause(response: &Response) -> Duration {
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Reads the beginning of an answer.
async fn read(response: &mut Response) -> reqwest::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = MAX_ANSWER_BYTES.saturating_sub(answer.len());
        answer.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            break;
        }
    }
    Ok(answer)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory does not fail.
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.unwrap_or_default()
}

/// Returns a collector's message for people. It may repeat what it got, so the credentials are masked.
fn shown(settings: &Settings, message: &str) -> String {
    let query: Vec<_> = settings.url.query_pairs().map(|(_, value)| value).collect();
    // `Bearer TOKEN` is a secret, and so is the token alone. Shorter words, such as a name of a scope, are in
    // innocent texts.
    let values = settings.headers.values().map(HeaderValue::as_bytes);
    let words = values.flat_map(|value| [value, value.rsplit(|byte| *byte == b' ').next().unwrap_or_default()]);
    let user = [settings.url.username(), settings.url.password().unwrap_or_default()];
    let words = words.chain(user.map(str::as_bytes)).chain(query.iter().map(|value| value.as_bytes()));
    let mut secrets = Secrets::new();
    for (at, word) in words.filter(|word| word.len() >= MIN_SECRET).enumerate() {
        secrets.insert(at.to_string(), word);
    }
    text::cut(&text::clean(&mask(&secrets, message)), MAX_MESSAGE).into_owned()
}

/// Returns the innermost cause of an error, without the address.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    text::clean(&cause.to_string())
}
