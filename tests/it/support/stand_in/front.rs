//! A server before the stand-in: requests of the API pass through a proxy that checks them against the
//! service's description, and logs go straight to the stand-in, because the proxy reads answers whole.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use hyper::{Request, Response, body::Incoming, client, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// A request, the status of its answer, and how either differs from the description.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) call: String,
    pub(crate) status: u16,
    pub(crate) violations: Vec<Value>,
}

/// The server. It serves until it is dropped, on its own thread.
pub(crate) struct Front {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    checked: Arc<Mutex<Vec<Checked>>>,
}

impl Front {
    pub(crate) fn start(proxy: SocketAddr, stand_in: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        let checked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&checked);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let record = Arc::clone(&record);
                let service = service_fn(move |request: Request<Incoming>| {
                    let to = if request.uri().path().starts_with("/v0/") { stand_in } else { proxy };
                    pass_on(request, to, Arc::clone(&record))
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { runtime: Some(runtime), address, checked }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests since the last call.
    pub(crate) fn checked(&self) -> Vec<Checked> {
        std::mem::take(&mut self.checked.lock().unwrap())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn pass_on(
    mut request: Request<Incoming>,
    to: SocketAddr,
    record: Arc<Mutex<Vec<Checked>>>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let call = format!("{} {}", request.method(), request.uri().path());
    request.headers_mut().insert("host", to.to_string().parse()?);
    let stream = tokio::net::TcpStream::connect(to).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let violations = answer.headers().get("sl-violations").map(|value| serde_json::from_slice(value.as_bytes()));
    let violations = violations.transpose()?.unwrap_or_default();
    record.lock().unwrap().push(Checked { call, status: answer.status().as_u16(), violations });
    Ok(answer)
}
