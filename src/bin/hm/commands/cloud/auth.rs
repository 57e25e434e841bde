//! `hm cloud login`, `logout` and `whoami`.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use hm_exec::service::{Service, ServiceError, api};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until, timeout},
};
use uuid::Uuid;

use super::{FormatArgs, Session, config};
use crate::{
    commands::{AnswerFormat, print, print_json},
    config::{CloudConfig, Token, credentials},
    exit_code,
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
    runtime::runtime,
    service,
};

/// How long the user has to log in.
const PATIENCE: Duration = Duration::from_secs(180);
/// The pause between two looks for the token.
const PAUSE: Duration = Duration::from_millis(750);
/// How long a browser may take to send its request, which is not longer than this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_REQUEST_BYTES: usize = 8 << 10;

/// Log in to the service
///
/// Opens a page of the service in the browser, which may also run on another machine: open the printed
/// address there. Without a browser, use `--paste`.
#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    /// Ask for a code that the page shows; or read it from HM_LOGIN_CODE
    #[arg(long)]
    paste: bool,
}

/// Remove the stored token
#[derive(Debug, clap::Args)]
pub(super) struct LogoutArgs {
    /// Also make the token invalid at the service
    #[arg(long)]
    revoke: bool,
}

/// Print the user to whom the token belongs
#[derive(Debug, clap::Args)]
pub(super) struct WhoamiArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn login(args: &LoginArgs) -> Outcome<ExitCode> {
    let config = config()?;
    config.check_encrypted()?;
    let url = &config.api_url.value;
    let failed = |error| failure(&config, error);
    let service = Service::anonymous(url).map_err(failed)?;
    let token = match args.paste {
        true => {
            let code = read_code(&config)?;
            runtime()?.block_on(service.redeem_code(&code)).map_err(failed)?
        }
        false => runtime()?.block_on(from_browser(&config, &service))?,
    };
    let token = Token::new(token);
    let user = Service::new(url, token.reveal()).map_err(failed)?;
    let user = runtime()?.block_on(user.user()).map_err(failed)?;
    let file = credentials::store(url, &token)?;
    print(&format!("logged in as {} (the token is in {})\n", described(&user), file.display()))
}

pub(super) fn logout(args: &LogoutArgs) -> Outcome<ExitCode> {
    let config = config()?;
    let url = &config.api_url.value;
    if args.revoke
        && let Some(stored) = credentials::stored(url)?
    {
        config.check_encrypted()?;
        let service = Service::new(url, stored.value.reveal()).map_err(|error| failure(&config, error))?;
        let session = Session { service, config: config.clone() };
        session.ask("revoke the token", async {
            match session.service.revoke_token().await {
                // It is invalid already: perhaps the first answer was lost.
                Err(ServiceError::Unauthorized) => Ok(()),
                revoked => revoked,
            }
        })?;
    }
    match credentials::forget(url)? {
        true => print(&format!("logged out of {url}\n")),
        false => print(&format!("not logged in to {url}\n")),
    }
}

pub(super) fn whoami(args: &WhoamiArgs) -> Outcome<ExitCode> {
    let session = Session::open()?;
    let user = session.ask("look up the user", session.service.user())?;
    match args.format.format {
        AnswerFormat::Json => print_json(&user),
        AnswerFormat::Text => print(&format!("{} (id {})\n", described(&user), user.uuid)),
    }
}

/// Returns `NAME <EMAIL>`.
pub(in crate::commands) fn described(user: &api::CurrentUserResponse) -> String {
    let email = text::clean(&user.email);
    match &user.name {
        Some(name) => format!("{} <{email}>", text::clean(name)),
        None => email,
    }
}

fn failure(config: &CloudConfig, error: ServiceError) -> Failure {
    match error {
        ServiceError::Rejected { code, message, .. } => {
            Failure::service(exit_code::AUTH, format_args!("the service refused the login [{code}]: {message}"))
                .hint("run `hm cloud login` again")
        }
        error => service::failure(config, "failed to log in", error),
    }
}

/// Asks for the code that the service's page shows.
fn read_code(config: &CloudConfig) -> Outcome<String> {
    // As everywhere, an empty variable counts as unset.
    if let Ok(code) = std::env::var("HM_LOGIN_CODE")
        && !code.trim().is_empty()
    {
        return Ok(code.trim().to_owned());
    }
    let failed = |error: io::Error| Failure::infrastructure("failed to prompt on the terminal").because(error);
    if !io::stdin().is_terminal() {
        return Err(Failure::input("there is no terminal to ask for the code").hint("set HM_LOGIN_CODE"));
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "Open {}/cli-login?paste=true\nCode: ", config.app_url.value).map_err(failed)?;
    stderr.flush().map_err(failed)?;
    let mut code = String::new();
    io::stdin().read_line(&mut code).map_err(failed)?;
    Ok(code.trim().to_owned())
}

/// Sends the user to the service's page, and waits until the service has a token for this login.
async fn from_browser(config: &CloudConfig, service: &Service) -> Outcome<String> {
    let failed = |error: io::Error| Failure::infrastructure("failed to listen for the browser").because(error);
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    // 244 random bits.
    let nonce = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let page = format!("{}/cli-login?port={port}&nonce={nonce}", config.app_url.value);
    to_stderr(&format!("Open {page}\n(or use `hm cloud login --paste`)"));
    // It waits for the program, and meanwhile the browser may call.
    drop(tokio::task::spawn_blocking(move || service::browse(&page)));
    let deadline = Instant::now() + PATIENCE;
    let mut next = Instant::now() + PAUSE;
    loop {
        tokio::select! {
            // The browser says that the token is there. That may not be true: anyone on this machine can
            // connect.
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    greet(stream).await;
                }
            }
            () = sleep_until(next) => {}
            () = sleep_until(deadline) => {
                return Err(Failure::service(exit_code::AUTH, "no login within three minutes")
                    .hint("run `hm cloud login` again, or `hm cloud login --paste`"));
            }
        }
        if let Some(token) = service.claim_token(&nonce).await.map_err(|error| failure(config, error))? {
            return Ok(token);
        }
        next = Instant::now() + PAUSE;
    }
}

/// Answers a browser. Errors are its own affair.
async fn greet(mut stream: TcpStream) {
    let answered = async {
        let mut request = vec![0; MAX_REQUEST_BYTES];
        let read = stream.read(&mut request).await.unwrap_or_default();
        let (status, text) = match request[..read].starts_with(b"GET ") {
            true => ("200 OK", "You can close this page and return to the terminal.\n"),
            false => ("405 Method Not Allowed", "\n"),
        };
        let head = "content-type: text/plain; charset=utf-8\r\nconnection: close";
        let answer = format!("HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await
    };
    drop(timeout(REQUEST_TIMEOUT, answered).await);
}
