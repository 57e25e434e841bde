//! One engine, connected to when it is first called.

use std::{fmt, sync::Arc, time::Duration};

use bazel_remote_apis::google::bytestream::byte_stream_client::ByteStreamClient;
use tokio::sync::OnceCell;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

use super::{
    EndpointOptions, OptionsError, RemoteError, RemoteErrorKind, Retry,
    capabilities::RemoteLimits,
    reapi::{
        action_cache_client::ActionCacheClient, capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
    },
    retry::retried,
};
use crate::sync::Mutex;

/// The maximum message size: the default limit of every gRPC library.
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The timeout of a call with a single answer.
const CALL: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
/// Detects a dead peer without sending HTTP/2 pings to the engine.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Most engines disconnect clients that ping more often than every five minutes.
const PING_EVERY: Duration = Duration::from_secs(310);
/// How many bytes the engine may send before we have read them.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How many calls that last as long as a step share a connection. Engines, and proxies before them, limit the
/// calls on one connection, some to a hundred. What is over the limit waits, and short calls would wait for
/// the end of steps.
const LONG_CALLS: usize = 48;
/// Values shorter than this are not masked as secrets: masking them would garble every text.
const MIN_SECRET: usize = 4;

/// A client's connection, which adds the headers to every call.
pub(crate) type Service = InterceptedService<Channel, Headers>;

/// One engine. Cheap to clone: clones share a connection, which is established at the first call and again
/// after it broke.
#[derive(Clone)]
pub struct Endpoint(Arc<Shared>);

struct Shared {
    options: EndpointOptions,
    place: String,
    connect: tonic::transport::Endpoint,
    headers: Headers,
    retry: Retry,
    channel: OnceCell<Channel>,
    /// The connections of long calls, the first of which is that of all other calls, too.
    long_calls: Mutex<Vec<(Channel, Seat)>>,
    limits: OnceCell<Arc<RemoteLimits>>,
}

/// The place of a long call on its connection, until it is dropped.
#[derive(Debug, Clone, Default)]
pub(super) struct Seat(Arc<()>);

impl Seat {
    /// Returns the number of calls that have one. The endpoint has one, too.
    fn taken(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// Adds headers to calls.
#[derive(Debug, Clone)]
pub(crate) struct Headers(Arc<[(MetadataKey<Ascii>, MetadataValue<Ascii>)]>);

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in &*self.0 {
            request.metadata_mut().append(name.clone(), value.clone());
        }
        Ok(request)
    }
}

impl Endpoint {
    /// Validates the options. Does not connect yet.
    ///
    /// # Errors
    /// Returns an error if an option is invalid.
    pub fn new(options: EndpointOptions) -> Result<Self, OptionsError> {
        Self::with_retry(options, Retry::default())
    }

    /// Creates an endpoint like [`new`](Self::new), with a retry policy.
    ///
    /// # Errors
    /// Returns an error if an option is invalid.
    pub fn with_retry(options: EndpointOptions, retry: Retry) -> Result<Self, OptionsError> {
        let (url, tls) = options.http_url()?;
        let place = options.place();
        let headers = options.headers.iter().map(|(name, value)| {
            let wrong = || OptionsError::Header { name: name.clone() };
            let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = MetadataValue::try_from(value.as_str()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            Ok((key, value))
        });
        let headers = Headers(headers.collect::<Result<Vec<_>, OptionsError>>()?.into());
        let mut connect = Channel::from_shared(url)
            .map_err(|_| OptionsError::Url { url: place.clone() })?
            .connect_timeout(CONNECT)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if tls {
            connect = connect
                .tls_config(tls_of(&options))
                .map_err(|error| OptionsError::Certificates { reason: format!("{:#}", anyhow::Error::new(error)) })?;
        }
        let (channel, long_calls, limits) = (OnceCell::new(), Mutex::default(), OnceCell::new());
        Ok(Self(Arc::new(Shared { options, place, connect, headers, retry, channel, long_calls, limits })))
    }

    /// Returns the same engine with a connection of its own. A connection lives no longer than the runtime in
    /// which it was created.
    pub(crate) fn apart(&self) -> Self {
        let Shared { options, place, connect, headers, retry, .. } = &*self.0;
        Self(Arc::new(Shared {
            options: options.clone(),
            place: place.clone(),
            connect: connect.clone(),
            headers: headers.clone(),
            retry: *retry,
            channel: OnceCell::new(),
            long_calls: Mutex::default(),
            limits: OnceCell::new(),
        }))
    }

    /// Returns the engine's address, without secrets.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// Returns the instance's name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.options.instance
    }

    /// Returns the retry policy of calls.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Returns the limits and capabilities of the engine, which are requested only once.
    ///
    /// # Errors
    /// Returns an error if the engine does not answer or denies access. The next call tries again.
    pub async fn limits(&self) -> Result<Arc<RemoteLimits>, RemoteError> {
        let limits = self.0.limits.get_or_try_init(async || {
            let channel = self.service().await;
            let limits = retried!(self.retry(), {
                let mut client = CapabilitiesClient::new(channel.clone());
                let answer = client.get_capabilities(
                    self.request(super::reapi::GetCapabilitiesRequest { instance_name: self.instance().to_owned() }),
                );
                Ok(RemoteLimits::of(&answer.await.map_err(|status| self.error(&status))?.into_inner()))
            });
            limits.map(Arc::new)
        });
        limits.await.cloned()
    }

    /// Checks whether the engine answers, without a retry.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn check(&self) -> Result<RemoteLimits, RemoteError> {
        let mut client = CapabilitiesClient::new(self.service().await);
        let request = super::reapi::GetCapabilitiesRequest { instance_name: self.instance().to_owned() };
        let mut request = Request::new(request);
        request.set_timeout(CONNECT);
        let answer = client.get_capabilities(request).await.map_err(|status| self.error(&status))?;
        Ok(RemoteLimits::of(&answer.into_inner()))
    }

    /// Returns the connection, for a client of another service of the same engine.
    pub(crate) async fn service(&self) -> Service {
        let channel = self.0.channel.get_or_init(async || self.0.connect.connect_lazy()).await;
        InterceptedService::new(channel.clone(), self.0.headers.clone())
    }

    /// Returns a connection for a call that lasts as long as a step, and the call's place on it.
    pub(super) async fn long_call(&self) -> (Service, Seat) {
        let first = self.0.channel.get_or_init(async || self.0.connect.connect_lazy()).await;
        let mut connections = self.0.long_calls.lock();
        if connections.is_empty() {
            connections.push((first.clone(), Seat::default()));
        }
        let (channel, seat) = match connections.iter().find(|(_, seat)| seat.taken() < LONG_CALLS) {
            Some(connection) => connection.clone(),
            None => {
                let connection = (self.0.connect.connect_lazy(), Seat::default());
                connections.push(connection.clone());
                connection
            }
        };
        (InterceptedService::new(channel, self.0.headers.clone()), seat)
    }

    pub(super) async fn cas_client(&self) -> ContentAddressableStorageClient<Service> {
        // The answer for a whole batch is slightly larger than the batch.
        ContentAddressableStorageClient::new(self.service().await)
            .max_decoding_message_size(MAX_MESSAGE_BYTES + (1 << 20))
    }

    pub(crate) async fn byte_stream_client(&self) -> ByteStreamClient<Service> {
        byte_stream_client(self.service().await)
    }

    pub(super) async fn action_cache_client(&self) -> ActionCacheClient<Service> {
        ActionCacheClient::new(self.service().await)
    }

    /// Creates a request with a timeout of one minute.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL);
        request
    }

    /// Converts the status of a failed call to an error, with the values of headers masked.
    pub(crate) fn error(&self, status: &Status) -> RemoteError {
        RemoteError::of(&self.0.place, status, |text| self.masked(text))
    }

    /// Converts a status within an answer to an error.
    pub(super) fn answer_error(&self, status: &bazel_remote_apis::google::rpc::Status) -> RemoteError {
        RemoteError::of_answer(&self.0.place, status, |text| self.masked(text))
    }

    pub(super) fn own_error(&self, kind: RemoteErrorKind, detail: impl Into<String>) -> RemoteError {
        RemoteError::new(&self.0.place, kind, detail)
    }

    /// Returns the error of a stream that stood still for so long.
    pub(super) fn stalled_error(&self, idle: Duration) -> RemoteError {
        self.own_error(RemoteErrorKind::Unavailable, format!("nothing was transferred for {idle:?}"))
    }

    pub(super) fn missing_error(&self, missing: Vec<super::Digest>) -> RemoteError {
        RemoteError::of_missing(&self.0.place, missing)
    }

    pub(super) fn local_error(&self, doing: impl Into<String>, source: std::io::Error) -> RemoteError {
        RemoteError::local(&self.0.place, doing, source)
    }

    fn masked(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for (_, value) in &self.0.options.headers {
            // Masks the value, and the part after a scheme such as `Bearer`.
            for secret in [Some(&**value), value.split_once(' ').map(|(_, token)| token)].into_iter().flatten() {
                if secret.len() >= MIN_SECRET {
                    masked = masked.replace(secret, "***");
                }
            }
        }
        masked
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.0.options).finish()
    }
}

pub(super) fn byte_stream_client(service: Service) -> ByteStreamClient<Service> {
    ByteStreamClient::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES + (1 << 20))
}

fn tls_of(options: &EndpointOptions) -> ClientTlsConfig {
    let mut tls = ClientTlsConfig::new();
    tls = match &options.ca_pem {
        Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
        None => tls.with_native_roots(),
    };
    match &options.client_pem {
        Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
        None => tls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        let mut options = EndpointOptions::new("grpc://127.0.0.1:1");
        options.add_header("authorization: Bearer s3cret-token").unwrap();
        Endpoint::with_retry(options, Retry { attempts: 1, ..Retry::default() }).unwrap()
    }

    #[test]
    fn what_is_in_headers_is_in_no_error_and_no_debug_output() {
        let endpoint = endpoint();
        let error = endpoint.error(&Status::unauthenticated("no such token: s3cret-token"));
        assert!(!error.to_string().contains("s3cret"), "{error}");
        assert!(!format!("{endpoint:?} {:?}", endpoint.0.headers).contains("s3cret"));
    }

    #[test]
    fn a_header_that_can_not_be_sent_is_refused_without_its_value() {
        let mut options = EndpointOptions::new("grpc://127.0.0.1:1");
        options.headers.push(("authorization".into(), "s3cret\n".into()));
        let error = Endpoint::new(options).unwrap_err().to_string();
        assert!(error.contains("authorization") && !error.contains("s3cret"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_is_an_engine_that_can_not_be_reached() {
        let error = endpoint().limits().await.unwrap_err();
        assert_eq!(error.kind(), RemoteErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("grpc://127.0.0.1:1"), "{error}");
    }
}
