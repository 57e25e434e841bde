//! Credentials as docker keeps them: in its configuration file, or with a program that the file names.
//!
//! What is found is given to the registry alone: it is in no error, log or `Debug` of ours.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::super::ImageError;

/// Under what name docker.io's credentials are kept.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    /// `USER:PASSWORD` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The credentials for a registry: those of `file`, or of docker's own configuration.
///
/// # Errors
/// [`ImageError::Unreadable`] where there is a file that can't be read.
pub(super) async fn look_up(file: Option<PathBuf>, registry: &str) -> Result<RegistryAuth, ImageError> {
    let Some(path) = file.or_else(default_file) else { return Ok(RegistryAuth::Anonymous) };
    let registry = registry.to_owned();
    // Helpers ask keyrings, and those ask people.
    let found = tokio::task::spawn_blocking(move || read(&path, &registry));
    found.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "credentials could not be looked up");
        Ok(RegistryAuth::Anonymous)
    })
}

fn default_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    dir.map(|dir| dir.join("config.json"))
}

fn read(path: &Path, registry: &str) -> Result<RegistryAuth, ImageError> {
    let unreadable = |source| ImageError::Unreadable { path: path.to_owned(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(error) => return Err(unreadable(error)),
    };
    // The cause would quote the file.
    let config: DockerConfig = serde_json::from_slice(&bytes)
        .map_err(|error| unreadable(io::Error::other(format!("it does not decode at line {}", error.line()))))?;
    let keys = keys(registry);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key)).or(config.creds_store.as_ref());
    if let Some(helper) = helper {
        for key in &keys {
            if let Some(auth) = ask(helper, key).map_err(unreadable)? {
                return Ok(auth);
            }
        }
    }
    let found = config.auths.iter().find(|(key, _)| keys.contains(key) || keys.contains(&host(key)));
    Ok(found.and_then(|(_, entry)| entry.auth()).unwrap_or(RegistryAuth::Anonymous))
}

/// The names under which a registry's credentials may be kept.
fn keys(registry: &str) -> Vec<String> {
    match registry {
        "docker.io" => [DOCKER_HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"].map(Into::into).into(),
        other => vec![other.to_owned()],
    }
}

/// `HOST[:PORT]` of a name that may be an address.
fn host(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}

impl Entry {
    fn auth(&self) -> Option<RegistryAuth> {
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            return Some(RegistryAuth::Basic(username.clone(), password.clone()));
        }
        let decoded = STANDARD.decode(self.auth.as_ref()?.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(RegistryAuth::Basic(username.into(), password.trim_end_matches('\0').into()))
    }
}

/// Asks `docker-credential-HELPER`; `None` where it knows nothing.
fn ask(helper: &str, key: &str) -> io::Result<Option<RegistryAuth>> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(io::Error::other("it names a credential helper that can't be one"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("failed to run {program}: {error}"));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // Where it reads nothing it says what it has to say by its exit.
        let _ = io::Write::write_all(&mut stdin, key.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Ok(None);
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| io::Error::other(format!("{program} gave an answer that does not decode")))?;
    if answer.username == "<token>" {
        tracing::warn!("{program} has an identity token for {key}, which is not supported: asking without");
        return Ok(None);
    }
    Ok(Some(RegistryAuth::Basic(answer.username, answer.secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(config: &str, registry: &str) -> Result<RegistryAuth, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, config).unwrap();
        read(&path, registry)
    }

    #[test]
    fn credentials_are_found_by_the_names_that_docker_uses() {
        let secret = STANDARD.encode("ann:pass:word");
        let basic = || RegistryAuth::Basic("ann".into(), "pass:word".into());
        for (key, registry) in [
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io", "ghcr.io"),
            ("https://ghcr.io/v2/", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            (DOCKER_HUB_KEY, "docker.io"),
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{secret}"}}}},"other":1}}"#);
            assert_eq!(look(&config, registry).unwrap(), basic(), "{key}");
            assert_eq!(look(&config, "elsewhere.io").unwrap(), RegistryAuth::Anonymous);
        }
        assert_eq!(look("{}", "ghcr.io").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(read(Path::new("/nonexistent"), "x").unwrap(), RegistryAuth::Anonymous);
    }

    #[test]
    fn a_broken_file_is_told_without_what_is_in_it() {
        let error = look(r#"{"auths": {"x": {"auth": "geheim"#, "x").unwrap_err();
        let text = format!("{:#}", anyhow::Error::new(error));
        assert!(text.contains("config.json") && !text.contains("geheim"), "{text}");
        let error = look(r#"{"credsStore": "../../evil"}"#, "x").unwrap_err();
        assert!(format!("{:#}", anyhow::Error::new(error)).contains("helper"));
    }
}
