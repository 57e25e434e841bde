//! A collector of traces, as the far end of OTLP over HTTP: it keeps what it gets, and answers as a test
//! wants.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) path: String,
    /// Names are in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the request as the protocol's own types read it.
    pub(crate) fn request(&self) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(&*self.body).unwrap()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let resources = self.request().resource_spans.into_iter();
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }
}

/// What a collector does with a request that it has read.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The status line after the version, more headers, and the body.
    Status(&'static str, &'static str, Vec<u8>),
    /// Nothing, with the connection open.
    Hang,
    /// Nothing, and the connection ends.
    Close,
    /// Bytes of an answer that has no end.
    Drip,
}

impl Answer {
    pub(crate) fn accepted() -> Self {
        Self::Status("200 OK", "content-type: application/x-protobuf\r\n", Vec::new())
    }

    pub(crate) fn partial(rejected_spans: i64, error_message: &str) -> Self {
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message: error_message.into() });
        let body = ExportTraceServiceResponse { partial_success }.encode_to_vec();
        Self::Status("200 OK", "content-type: application/x-protobuf\r\n", body)
    }
}

/// A collector. Its threads end with the test's process.
pub(crate) struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    /// Starts a collector whose answer to each request depends on the number of those before it.
    pub(crate) fn start(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(answer, None)
    }

    pub(crate) fn with(
        answer: impl Fn(usize) -> Answer + Send + Sync + 'static,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (received, answer) = (Arc::<Mutex<Vec<Received>>>::default(), Arc::new(answer));
        let kept = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (kept, answer, tls) = (Arc::clone(&kept), Arc::clone(&answer), tls.clone());
                // A client that goes away in the middle is what some tests are about.
                thread::spawn(move || serve_one(stream?, tls, &kept, &*answer));
            }
        });
        Self { address, received }
    }

    /// Returns its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.received().iter().flat_map(Received::spans).collect()
    }
}

fn serve_one(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    received: &Mutex<Vec<Received>>,
    answer: &(dyn Fn(usize) -> Answer + Sync),
) -> io::Result<()> {
    match tls {
        None => serve(stream, received, answer),
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            serve(StreamOwned::new(connection, stream), received, answer)
        }
    }
}

fn serve(
    stream: impl Read + Write,
    received: &Mutex<Vec<Received>>,
    answer: &(dyn Fn(usize) -> Answer + Sync),
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream)? {
        let before = {
            let mut received = received.lock().unwrap();
            received.push(request);
            received.len() - 1
        };
        let out = stream.get_mut();
        match answer(before) {
            Answer::Close => return Ok(()),
            Answer::Hang => loop {
                thread::park();
            },
            Answer::Drip => {
                out.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                loop {
                    out.write_all(b"1\r\nx\r\n")?;
                    out.flush()?;
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Answer::Status(status, headers, body) => {
                write!(out, "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len())?;
                out.write_all(&body)?;
                out.flush()?;
            }
        }
    }
    Ok(())
}

/// Reads a request. Returns `None` if the client has closed the connection.
fn read(stream: &mut impl BufRead) -> io::Result<Option<Received>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let Some(path) = line.strip_prefix("POST ").and_then(|rest| rest.split(' ').next()) else { return Ok(None) };
    let (path, mut headers) = (path.to_owned(), Vec::new());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let len = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
    let mut body = vec![0; len.parse().unwrap()];
    stream.read_exact(&mut body)?;
    Ok(Some(Received { path, headers, body }))
}

/// Returns the attributes as text: numbers and flags as they are displayed.
pub(crate) fn attributes(attributes: &[KeyValue]) -> Vec<(&str, String)> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), text(attribute))).collect()
}
