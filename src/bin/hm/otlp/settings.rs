//! The collector that gets traces, as the variables of OpenTelemetry's specification or the user's
//! configuration name it.
//!
//! Ignores the files of projects, because a trace is sent with the user's credentials to the collector that
//! the user names.

use std::{ffi::OsString, path::Path, time::Duration};

use percent_encoding::percent_decode_str;
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use crate::{
    config,
    failure::{Failure, Outcome},
};

/// How long the end of a run may wait for the collector.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time that a variable can set.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// The length of a vendor's list, from which on it may be dropped.
const MAX_STATE_BYTES: usize = 512;

/// The path of traces on a collector.
const PATH: &str = "/v1/traces";

/// A collector, and what is sent to it. It has credentials, so there is no `Debug`.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) is_compressed: bool,
    /// The authorities that are trusted, in PEM. If there are none, those of this machine.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) resource: Vec<(String, String)>,
    pub(super) parent: Option<Parent>,
}

/// The span in which a run was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    pub(super) is_sampled: bool,
    pub(super) state: String,
}

impl Settings {
    /// Returns the collector that the user's environment names, or else `file`, which is that of the user's
    /// configuration. Returns `None` if nothing names one.
    ///
    /// # Errors
    /// Returns an error if a variable has a value that cannot be used.
    pub(crate) fn of_user(file: Option<&str>) -> Outcome<Option<Self>> {
        Self::of(|name| std::env::var_os(name), file)
    }

    fn of(get: impl Fn(&str) -> Option<OsString>, file: Option<&str>) -> Outcome<Option<Self>> {
        let variables = Variables { get };
        let is_off = |text: String| text.eq_ignore_ascii_case("true");
        if variables.text("OTEL_SDK_DISABLED")?.is_some_and(is_off) {
            return Ok(None);
        }
        let exporters = variables.text("OTEL_TRACES_EXPORTER")?;
        if exporters.is_some_and(|names| names.split(',').all(|name| name.trim() != "otlp")) {
            return Ok(None);
        }
        let Some((url, source)) = variables.endpoint(file)? else { return Ok(None) };
        let (headers, name) = variables.headers()?;
        let settings = Self {
            headers,
            timeout: variables.timeout()?,
            is_compressed: variables.is_compressed()?,
            authorities: variables.authorities(&url)?,
            resource: variables.resource()?,
            parent: variables.parent(),
            url,
        };
        variables.check_protocol()?;
        let name = if settings.headers.is_empty() { source } else { name };
        settings.check_encrypted(&name)?;
        Ok(Some(settings))
    }

    /// Returns whether the trace of the process that started this one is recorded. If not, this part of it
    /// need not be.
    pub(crate) fn is_sampled(&self) -> bool {
        self.parent.as_ref().is_none_or(|parent| parent.is_sampled)
    }

    /// Returns the collector's address without credentials, for messages.
    pub(crate) fn place(&self) -> String {
        place(&self.url)
    }

    /// Returns how long a trace may take, for messages.
    pub(super) fn time_limit(&self) -> String {
        match self.timeout.as_millis() {
            ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
            ms => format!("{ms} ms"),
        }
    }

    /// Returns an error if others can read credentials on the way.
    fn check_encrypted(&self, name: &str) -> Outcome<()> {
        let has_credentials =
            !self.headers.is_empty() || self.url.password().is_some() || !self.url.username().is_empty();
        let host = format!("{}://{}", self.url.scheme(), self.url.host_str().unwrap_or_default());
        if !has_credentials || config::is_encrypted(&host) {
            return Ok(());
        }
        let place = self.place();
        Err(Failure::input(format_args!("refusing to send {name} to {place}, which has no encryption"))
            .hint("use an address that begins with https://, or a collector on this machine"))
    }
}

/// Returns a URL without user, password and query.
fn place(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// The user's environment.
struct Variables<F> {
    get: F,
}

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    /// Returns the text of a variable. An empty one counts as unset.
    fn text(&self, name: &str) -> Outcome<Option<String>> {
        let Some(value) = (self.get)(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        value.into_string().map(Some).map_err(|_| Failure::input(format_args!("{name} is not UTF-8")))
    }

    /// Returns the text of the variable of traces with this name, or else of all signals, and its whole name.
    fn exporter(&self, name: &str) -> Outcome<Option<(String, String)>> {
        for name in [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")] {
            if let Some(text) = self.text(&name)? {
                return Ok(Some((text, name)));
            }
        }
        Ok(None)
    }

    /// Returns the collector's URL for traces, and what names it.
    fn endpoint(&self, file: Option<&str>) -> Outcome<Option<(Url, String)>> {
        let (text, source) = match (self.exporter("ENDPOINT")?, file) {
            (Some(named), _) => named,
            (None, Some(text)) => (text.to_owned(), "`otlp.endpoint` of your configuration".to_owned()),
            (None, None) => return Ok(None),
        };
        // The address may have a password, and is not repeated.
        let wrong = || {
            Failure::input(format_args!("{source} is not an address of a collector"))
                .hint("write it as in http://localhost:4318")
        };
        let mut url: Url = text.trim().parse().map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        // The variable of traces has the whole path, as the specification says.
        if source != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" {
            let path = format!("{}{PATH}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        url.set_fragment(None);
        Ok(Some((url, source)))
    }

    /// Returns the headers, and the variable that has them.
    fn headers(&self) -> Outcome<(HeaderMap, String)> {
        let mut headers = HeaderMap::new();
        let Some((text, source)) = self.exporter("HEADERS")? else { return Ok((headers, String::new())) };
        // A value may be secret, and is not repeated.
        let wrong = || Failure::input(format_args!("{source} is not a list of headers: NAME=VALUE,NAME=VALUE"));
        for (name, value) in pairs(&text).ok_or_else(wrong)? {
            let name: HeaderName = name.parse().map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok((headers, source))
    }

    fn timeout(&self) -> Outcome<Duration> {
        let Some((text, source)) = self.exporter("TIMEOUT")? else { return Ok(TIMEOUT) };
        match text.trim().parse() {
            Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms).min(MAX_TIMEOUT)),
            _ => Err(Failure::input(format_args!("{source} is not a number of milliseconds"))),
        }
    }

    fn is_compressed(&self) -> Outcome<bool> {
        let Some((text, source)) = self.exporter("COMPRESSION")? else { return Ok(false) };
        match text.trim() {
            "gzip" => Ok(true),
            "none" => Ok(false),
            _ => Err(Failure::input(format_args!("{source} is neither gzip nor none"))),
        }
    }

    fn check_protocol(&self) -> Outcome<()> {
        match self.exporter("PROTOCOL")? {
            Some((text, source)) if text.trim() != "http/protobuf" => Err(Failure::input(format_args!(
                "{source} is not http/protobuf, which is what hm sends"
            ))
            .hint(
                "set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf, and name the collector's port for HTTP (4318)",
            )),
            _ => Ok(()),
        }
    }

    fn authorities(&self, url: &Url) -> Outcome<Option<Vec<u8>>> {
        match self.exporter("CERTIFICATE")? {
            Some((path, _)) if url.scheme() == "https" => config::read_users(Path::new(&path)).map(Some),
            _ => Ok(None),
        }
    }

    /// Returns what the spans are about. A list that is not valid is discarded, as the specification says.
    fn resource(&self) -> Outcome<Vec<(String, String)>> {
        let text = self.text("OTEL_RESOURCE_ATTRIBUTES")?;
        let mut resource = text.and_then(|text| pairs(&text)).unwrap_or_default();
        let named = self.text("OTEL_SERVICE_NAME")?;
        if named.is_some() || resource.iter().all(|(key, _)| key != "service.name") {
            resource.retain(|(key, _)| key != "service.name");
            resource.insert(0, ("service.name".to_owned(), named.unwrap_or_else(|| "hm".to_owned())));
        }
        Ok(resource)
    }

    /// Returns the span that started this process. A header that is not valid counts as none, as the
    /// specification says.
    fn parent(&self) -> Option<Parent> {
        let text = self.text("TRACEPARENT").ok()??;
        // An invalid one says nothing about the parent.
        let state = self.text("TRACESTATE").ok().flatten().unwrap_or_default();
        let state = if state.len() <= MAX_STATE_BYTES && state.is_ascii() { state } else { String::new() };
        parent(text.trim(), state)
    }
}

/// Parses `VERSION-TRACE-SPAN-FLAGS`, in lower-case hexadecimal. Later versions may have more fields.
fn parent(text: &str, state: String) -> Option<Parent> {
    let mut fields = text.split('-');
    let version = number::<1>(fields.next()?)?;
    let (trace, span) = (number::<16>(fields.next()?)?, number::<8>(fields.next()?)?);
    let [flags] = number::<1>(fields.next()?)?;
    let is_valid = match version {
        [0] => fields.next().is_none(),
        [255] => false,
        _ => true,
    };
    let is_sampled = flags & 1 == 1;
    (is_valid && trace != [0; 16] && span != [0; 8]).then_some(Parent { trace, span, is_sampled, state })
}

fn number<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != 2 * BYTES || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Parses `KEY=VALUE,KEY=VALUE`, with percent-encoded values. Returns `None` if it is no such list.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').filter(|part| !part.trim().is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((key.trim().to_owned(), value.into_owned())).filter(|(key, _)| !key.is_empty())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)], file: Option<&str>) -> Outcome<Option<Settings>> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Settings::of(get, file)
    }

    #[test]
    fn an_endpoint_is_named_by_the_user_or_there_is_none() {
        let url = |variables: &[(&str, &str)], file| {
            of(variables, file).unwrap_or_else(|failure| panic!("{failure}")).map(|settings| settings.url.to_string())
        };
        let (all, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        assert_eq!(url(&[], None), None);
        assert_eq!(url(&[(all, "")], None), None);
        assert_eq!(url(&[], Some("http://c:4318")).as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(url(&[(all, "http://c:4318/")], Some("http://x")).as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(url(&[(all, "https://c/otlp/#x")], None).as_deref(), Some("https://c/otlp/v1/traces"));
        assert_eq!(url(&[(all, "http://x"), (traces, "http://c/in")], None).as_deref(), Some("http://c/in"));
        for off in
            [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_EXPORTER", "console")]
        {
            assert_eq!(url(&[(all, "http://c"), off], None), None, "{off:?}");
        }
        assert!(url(&[(all, "http://c"), ("OTEL_TRACES_EXPORTER", "console, otlp")], None).is_some());
        for wrong in ["c:4318", "ftp://c", "http://", "grpc://s3cret@c", "/v1/traces"] {
            let error = of(&[(all, wrong)], None).err().map(|failure| failure.to_string()).unwrap();
            assert!(error.contains(all) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn credentials_are_not_shown_and_go_over_no_network_without_encryption() {
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret%3D1, x-scope=a");
        let with = |url| of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url), headers], None);
        let settings = with("https://me:s3cret@c:1/p?key=s3cret").ok().flatten().unwrap();
        assert_eq!(settings.place(), "https://c:1/p/v1/traces");
        assert_eq!(
            (&settings.headers["api-key"], &settings.headers["x-scope"]),
            (&"s3cret=1".parse().unwrap(), &"a".parse().unwrap())
        );
        assert!(!format!("{:?}", settings.headers).contains("s3cret"));
        for here in ["http://localhost:4318", "http://127.0.0.1", "http://[::1]:1"] {
            assert!(with(here).is_ok(), "{here}");
        }
        let refused = with("http://c:4318").err().unwrap().to_string();
        assert_eq!(
            refused,
            "refusing to send OTEL_EXPORTER_OTLP_HEADERS to http://c:4318/v1/traces, which has no encryption"
        );
        let in_url =
            of(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://me:s3cret@c")], None).err().unwrap().to_string();
        assert_eq!(in_url, "refusing to send OTEL_EXPORTER_OTLP_TRACES_ENDPOINT to http://c/, which has no encryption");
        for wrong in ["s3cret", "a b=s3cret", "=s3cret", "a=s3cret%0a", "a=%ffs3cret"] {
            let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c"), ("OTEL_EXPORTER_OTLP_HEADERS", wrong)];
            let error = of(&variables, None).err().unwrap().to_string();
            assert!(error.contains("OTEL_EXPORTER_OTLP_HEADERS") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn other_variables_are_those_of_the_specification() {
        let with = |variables: &[(&str, &str)]| {
            let all = [&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")], variables].concat();
            of(&all, None).map(Option::unwrap)
        };
        let default = with(&[]).ok().unwrap();
        assert_eq!((default.timeout, default.is_compressed, default.time_limit()), (TIMEOUT, false, "5 s".to_owned()));
        assert_eq!(default.resource, [("service.name".to_owned(), "hm".to_owned())]);
        let set = with(&[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a%2Cb,service.name=x"),
            ("OTEL_SERVICE_NAME", "builds"),
        ]);
        let set = set.ok().unwrap();
        assert_eq!(
            (set.timeout, set.is_compressed, set.time_limit()),
            (Duration::from_millis(250), true, "250 ms".to_owned())
        );
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(set.resource, [pair("service.name", "builds"), pair("team", "a,b")]);
        assert_eq!(with(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "99999999")]).ok().unwrap().timeout, MAX_TIMEOUT);
        for wrong in [
            ("TIMEOUT", "0"),
            ("TIMEOUT", "soon"),
            ("COMPRESSION", "zip"),
            ("PROTOCOL", "grpc"),
            ("PROTOCOL", "http/json"),
        ] {
            let name = format!("OTEL_EXPORTER_OTLP_{}", wrong.0);
            let error = with(&[(&name, wrong.1)]).err().unwrap().to_string();
            assert!(error.starts_with(&name), "{error}");
        }
    }

    #[test]
    fn a_parent_is_read_strictly() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let found = |text: &str| parent(text, String::new());
        let known = found(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!((known.trace[0], known.trace[15], known.span[7], known.is_sampled), (0x0a, 0x9c, 0x31, true));
        assert!(!found(&format!("00-{trace}-{span}-02")).unwrap().is_sampled);
        assert!(found(&format!("01-{trace}-{span}-01-more")).is_some());
        let zeros = ("0".repeat(32), "0".repeat(16));
        for wrong in [
            String::new(),
            "00".into(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", zeros.0),
            format!("00-{trace}-{}-01", zeros.1),
            format!("00-{trace}-{span}-1"),
            format!("00-é{}-{span}-01", &trace[2..]),
        ] {
            assert_eq!(found(&wrong), None, "{wrong}");
        }
    }
}
