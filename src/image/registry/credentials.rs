//! Looks up credentials as docker stores them: in its configuration file, or with a program that the file
//! names.
//!
//! Credentials are given only to the registry. They do not appear in our errors, logs or `Debug` output.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::super::ImageError;
use crate::{programs, sync::Mutex};

/// The name under which docker.io's credentials are stored.
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

/// The output of a credential helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Returns the credentials for a registry from `file`, or from docker's own configuration. If a helper named
/// there does not work, there are no credentials, as in docker: most images need none.
///
/// # Errors
/// Returns [`ImageError::Unreadable`] if there is a file that cannot be read.
pub(super) async fn look_up(file: Option<PathBuf>, registry: &str) -> Result<RegistryAuth, ImageError> {
    let Some(path) = file.or_else(default_file) else { return Ok(RegistryAuth::Anonymous) };
    let registry = registry.to_owned();
    // Helpers may query keyrings, which may prompt the user.
    let found = tokio::task::spawn_blocking(move || read(&path, &registry));
    let (auth, warning) = found.await.unwrap_or_else(|error| {
        Ok((RegistryAuth::Anonymous, Some(format!("failed to look up credentials: {error}"))))
    })?;
    if let Some(warning) = warning
        && is_new(&warning)
    {
        tracing::warn!("{warning}");
    }
    Ok(auth)
}

/// Returns whether a warning was not printed yet. Credentials are looked up for each image of a build.
fn is_new(warning: &str) -> bool {
    static GIVEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    GIVEN.lock().insert(warning.to_owned())
}

fn default_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    dir.map(|dir| dir.join("config.json"))
}

/// Returns the credentials that the file `path` leads to, and a warning for the user.
fn read(path: &Path, registry: &str) -> Result<(RegistryAuth, Option<String>), ImageError> {
    let unreadable = |source| ImageError::Unreadable { path: path.to_owned(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok((RegistryAuth::Anonymous, None));
        }
        Err(error) => return Err(unreadable(error)),
    };
    // The cause would quote the file.
    let config: DockerConfig = serde_json::from_slice(&bytes)
        .map_err(|error| unreadable(io::Error::other(format!("it is invalid at line {}", error.line()))))?;
    let keys = keys(registry);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key)).or(config.creds_store.as_ref());
    let mut warning = None;
    if let Some(helper) = helper {
        for key in &keys {
            match ask(helper, key) {
                Ok(Some(auth)) => return Ok((auth, None)),
                Ok(None) => {}
                Err(reason) => {
                    let path = path.display();
                    warning = Some(format!(
                        "the credential helper in `{path}` does not work ({reason}): using {registry} without \
                         its credentials; install the helper, or remove it from the file"
                    ));
                    break;
                }
            }
        }
    }
    let found = config.auths.iter().find(|(key, _)| keys.contains(key) || keys.contains(&host(key)));
    Ok((found.and_then(|(_, entry)| entry.auth()).unwrap_or(RegistryAuth::Anonymous), warning))
}

/// Returns the names under which a registry's credentials may be stored.
fn keys(registry: &str) -> Vec<String> {
    match registry {
        "docker.io" => [DOCKER_HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"].map(Into::into).into(),
        other => vec![other.to_owned()],
    }
}

/// Returns `HOST[:PORT]` of a name that may be a URL.
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

/// Runs `docker-credential-HELPER`. Returns `None` if it has no credentials, and the reason if it does not
/// work.
fn ask(helper: &str, key: &str) -> Result<Option<RegistryAuth>, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(format!("invalid name `{}`", helper.escape_debug()));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed"),
        _ => format!("failed to run {program}: {error}"),
    };
    let found = programs::find(&program).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let mut child = Command::new(found)
        .arg("get")
        .env("PATH", programs::search_path())
        // The program runs with the user's privileges, so it is not started in the checkout.
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it does not read its input, its exit status is reported.
        let _ = io::Write::write_all(&mut stdin, key.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Ok(None);
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| format!("{program} printed an invalid answer"))?;
    if answer.username == "<token>" {
        tracing::warn!(
            "{program} has an identity token for {key}, which is not supported; continuing without credentials"
        );
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
        read(&path, registry).map(|(auth, warning)| {
            assert_eq!(warning, None);
            auth
        })
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
        assert_eq!(read(Path::new("/nonexistent"), "x").unwrap(), (RegistryAuth::Anonymous, None));
    }

    #[test]
    fn a_broken_file_is_told_without_what_is_in_it() {
        let error = look(r#"{"auths": {"x": {"auth": "geheim"#, "x").unwrap_err();
        let text = format!("{:#}", anyhow::Error::new(error));
        assert!(text.contains("config.json") && !text.contains("geheim"), "{text}");
    }

    #[test]
    fn a_helper_that_does_not_work_is_reported_and_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let secret = STANDARD.encode("ann:pass");
        for (config, expected) in [
            (r#"{"credsStore":"hm-is-not-installed"}"#, "docker-credential-hm-is-not-installed is not installed"),
            (r#"{"credHelpers":{"ghcr.io":"hm-no"}}"#, "docker-credential-hm-no is not installed"),
            (r#"{"credsStore":"../../evil"}"#, "invalid name"),
        ] {
            fs::write(&path, config).unwrap();
            let (auth, warning) = read(&path, "ghcr.io").unwrap();
            let warning = warning.unwrap();
            assert_eq!(auth, RegistryAuth::Anonymous);
            assert!(warning.contains(expected) && warning.contains("config.json"), "{warning}");
        }
        // Credentials in the file itself count nevertheless.
        let config = format!(r#"{{"credsStore":"hm-no","auths":{{"ghcr.io":{{"auth":"{secret}"}}}}}}"#);
        fs::write(&path, config).unwrap();
        let (auth, warning) = read(&path, "ghcr.io").unwrap();
        assert_eq!(auth, RegistryAuth::Basic("ann".into(), "pass".into()));
        assert!(warning.is_some_and(|warning| !warning.contains("pass")));
        // Other registries need no helper.
        fs::write(&path, r#"{"credHelpers":{"ghcr.io":"hm-no"}}"#).unwrap();
        assert_eq!(read(&path, "quay.io").unwrap(), (RegistryAuth::Anonymous, None));
    }
}
