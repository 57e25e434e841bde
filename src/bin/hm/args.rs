//! Arguments that several commands share, and the values that they parse.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use hm_exec::{
    RunRequest,
    ir::Env,
    plan::BindOptions,
    runner::{Network, Secrets},
};

use crate::failure::{Failure, Outcome};

/// Which pipeline, and of which source.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// The pipeline; optional if there is only one, or one named `ci` or `default`
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: Option<String>,

    /// Read the pipeline from a v0 IR JSON file (`-` for stdin) instead of `.hm/`
    #[arg(short, long, value_name = "IR.json")]
    pub(crate) file: Option<PathBuf>,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Download nothing: no package to render pipelines with, and no images (as with `--pull never`)
    #[arg(long)]
    pub(crate) offline: bool,
}

impl SourceArgs {
    /// Returns the step that takes the pipeline's place in arguments after `-f`, which names the pipeline.
    pub(crate) fn first_step(&self) -> Option<&str> {
        self.file.as_ref().and(self.pipeline.as_deref())
    }

    /// Returns an error if the arguments name a pipeline twice. For commands that have no steps as arguments.
    pub(crate) fn check_one_pipeline(&self) -> Outcome<()> {
        match self.first_step() {
            None => Ok(()),
            Some(name) => {
                Err(Failure::input(format_args!("`-f` and `{name}` both name a pipeline")).hint("remove one of them"))
            }
        }
    }
}

/// What a run changes about a pipeline.
#[derive(Debug, Args)]
pub(crate) struct BindArgs {
    /// The runner for steps that do not name one (see `hm runners`)
    #[arg(long, value_name = "NAME")]
    pub(crate) runner: Option<String>,

    /// The network of steps that do not name one: `private`, the default, is one of the step's own, from
    /// which this machine's ports cannot be reached, `host` is this machine's, `none` is a loopback device
    /// [env: HM_NETWORK]
    #[arg(long, value_name = "NETWORK", value_enum)]
    pub(crate) network: Option<NetworkArg>,

    /// Replace image A with image B, as in `debian:bookworm=host` (repeatable)
    #[arg(long = "image", value_name = "A=B", value_parser = Substitution::from_str)]
    pub(crate) images: Vec<Substitution>,

    /// Set an environment variable for every step; without `=V`, pass on hm's own value (repeatable)
    #[arg(short, long = "env", value_name = "K[=V]", value_parser = Variable::from_str)]
    pub(crate) env: Vec<Variable>,

    /// Provide a secret at /run/secrets/NAME, masked in all output; its value is read from the environment
    /// variable NAME, or from FROM, which is `env:VAR` or `file:PATH` (repeatable)
    #[arg(long = "secret", value_name = "NAME[=FROM]", value_parser = SecretSource::from_str)]
    pub(crate) secrets: Vec<SecretSource>,
}

/// The values of `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetworkArg {
    Private,
    Host,
    None,
}

impl From<NetworkArg> for Network {
    fn from(argument: NetworkArg) -> Self {
        match argument {
            NetworkArg::Private => Self::Private,
            NetworkArg::Host => Self::Host,
            NetworkArg::None => Self::None,
        }
    }
}

impl BindArgs {
    /// Returns the network that the option or the variable names. An empty variable counts as unset.
    fn network(&self) -> Outcome<Option<NetworkArg>> {
        if self.network.is_some() {
            return Ok(self.network);
        }
        let variable = std::env::var_os("HM_NETWORK").filter(|name| !name.is_empty());
        let parse =
            |name: std::ffi::OsString| <NetworkArg as clap::ValueEnum>::from_str(&name.to_string_lossy(), false);
        variable.map(parse).transpose().map_err(|_| {
            Failure::input("HM_NETWORK names no network").hint("set it to `private`, `host` or `none`, or unset it")
        })
    }

    /// Returns whether the command line has values of variables.
    pub(crate) fn has_values(&self) -> bool {
        self.env.iter().any(|variable| variable.value.is_some())
    }

    /// Returns everything but the secrets' values.
    pub(crate) fn bind_options(&self) -> Outcome<BindOptions> {
        Ok(BindOptions {
            runner: self.runner.clone(),
            network: self.network()?.map(Network::from),
            images: self.images.iter().map(|image| (image.from.clone(), image.to.clone())).collect(),
            env: self.read_env()?,
            has_secrets: !self.secrets.is_empty(),
            ..BindOptions::default()
        })
    }

    /// Sets what a request has of `options`, for runs and for their predictions.
    pub(crate) fn apply(options: BindOptions, request: &mut RunRequest) {
        let BindOptions { runner, network, step_tables, services, images, env, no_cache, refresh, .. } = options;
        request.env = env;
        let of_run = &mut request.options;
        (of_run.runner, of_run.network, of_run.images) = (runner, network, images);
        (of_run.step_tables, of_run.services) = (step_tables, services);
        (of_run.no_cache, of_run.refresh) = (no_cache, refresh);
    }

    /// Reads the secrets from where the arguments say.
    pub(crate) fn read_secrets(&self) -> Outcome<Secrets> {
        let mut secrets = Secrets::new();
        for secret in &self.secrets {
            secrets.insert(&secret.name, secret.read()?);
        }
        Ok(secrets)
    }

    fn read_env(&self) -> Outcome<Env> {
        let mut env = Env::new();
        for Variable { name, value } in &self.env {
            let value = match value {
                Some(value) => value.clone(),
                None => std::env::var(name).map_err(|error| {
                    Failure::input(format_args!("failed to read `{name}` for `-e {name}`"))
                        .because(error)
                        .hint(format_args!("set it, or pass `-e {name}=VALUE`"))
                })?,
            };
            env.insert(name.clone(), value);
        }
        Ok(env)
    }
}

/// Parses a number of at least 1.
pub(crate) fn parse_count(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "expected a whole number from 1 on")
}

/// `A=B`: image B instead of A.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Substitution {
    from: String,
    to: String,
}

impl FromStr for Substitution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Self { from: from.into(), to: to.into() }),
            _ => Err("expected A=B, as in `debian:bookworm=host`".into()),
        }
    }
}

/// `K=V`, or `K` alone for the value in hm's own environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    name: String,
    value: Option<String>,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() || text.contains('\0') {
            return Err("expected NAME=VALUE, or NAME to pass on hm's own value".into());
        }
        Ok(Self { name: name.into(), value: value.map(String::from) })
    }
}

/// Where a secret's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretSource {
    name: String,
    place: SecretPlace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SecretPlace {
    Env(String),
    File(PathBuf),
}

impl FromStr for SecretSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, place) = text.split_once('=').map_or((text, None), |(name, place)| (name, Some(place)));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            return Err("a secret's name may contain only letters, digits, `_`, `-` and `.`, and must not start with \
                        `.`"
            .into());
        }
        let place = match place.map(|place| place.split_once(':')) {
            None => SecretPlace::Env(name.into()),
            Some(Some(("env", variable))) if !variable.is_empty() => SecretPlace::Env(variable.into()),
            Some(Some(("file", path))) if !path.is_empty() => SecretPlace::File(path.into()),
            // The text after `=` may be the secret itself, so it is not repeated.
            Some(_) => {
                return Err("expected NAME, NAME=env:VAR or NAME=file:PATH; a value cannot be given here".into());
            }
        };
        Ok(Self { name: name.into(), place })
    }
}

impl SecretSource {
    fn read(&self) -> Outcome<Vec<u8>> {
        let name = &self.name;
        let value = match &self.place {
            SecretPlace::Env(variable) => {
                std::env::var_os(variable).map(std::os::unix::ffi::OsStringExt::into_vec).ok_or_else(|| {
                    Failure::input(format_args!("secret `{name}` is missing: variable `{variable}` is not set"))
                        .hint(format_args!("export {variable}, or pass `--secret {name}=file:PATH`"))
                })?
            }
            SecretPlace::File(path) => std::fs::read(path).map_err(|error| {
                Failure::input(format_args!("failed to read secret `{name}` from {}", path.display())).because(error)
            })?,
        };
        if value.is_empty() {
            return Err(
                Failure::input(format_args!("secret `{name}` is empty")).hint("set its value, or remove the option")
            );
        }
        Ok(value)
    }
}

/// Parses `90`, `90s`, `1h30m`, `14d`, `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration such as 90s, 15m or 1h30m";
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().map_err(|_| EXPECTED)?;
        rest = &rest[digits..];
        let unit = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let part = match &rest[..unit] {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "" if digits == text.len() => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(24 * 3600).map(Duration::from_secs),
            _ => return Err(EXPECTED.into()),
        };
        total = part.and_then(|part| total.checked_add(part)).ok_or("the duration is too long")?;
        rest = &rest[unit..];
    }
    if total.is_zero() { Err(format!("{EXPECTED}, longer than zero")) } else { Ok(total) }
}

/// Returns `path` as an absolute path without symbolic links.
pub(crate) fn existing_dir(path: &Path) -> Outcome<PathBuf> {
    let absolute = path
        .canonicalize()
        .map_err(|error| Failure::input(format_args!("failed to open directory {}", path.display())).because(error))?;
    if absolute.is_dir() {
        Ok(absolute)
    } else {
        Err(Failure::input(format_args!("{} is not a directory", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_their_parts() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m5s"), Ok(Duration::from_secs(5405)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("14d"), Ok(Duration::from_secs(14 * 86_400)));
    }

    #[test]
    fn wrong_durations_are_refused_with_an_example() {
        for wrong in
            ["", "0", "0s", "s", "5x", "5 m", "-5s", "1h30", "1.5h", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_come_from_the_environment_or_a_file_and_never_from_the_command_line() {
        let of = |text: &str| text.parse::<SecretSource>();
        assert_eq!(of("TOKEN").map(|s| s.place), Ok(SecretPlace::Env("TOKEN".into())));
        assert_eq!(of("token=env:MY_TOKEN").map(|s| s.place), Ok(SecretPlace::Env("MY_TOKEN".into())));
        assert_eq!(of("key=file:/a:b=c").map(|s| s.place), Ok(SecretPlace::File("/a:b=c".into())));
        for wrong in ["", "=env:A", "../x", "a/b", ".hidden", "x=env:", "x=file:"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        let error = of("TOKEN=hunter2").unwrap_err();
        assert!(!error.contains("hunter2"));
    }

    #[test]
    fn substitutions_split_at_the_first_equals_sign() {
        let image: Substitution = "debian:bookworm=rootfs:/a=b".parse().unwrap();
        assert_eq!((image.from.as_str(), image.to.as_str()), ("debian:bookworm", "rootfs:/a=b"));
        assert!("debian".parse::<Substitution>().is_err());
        assert!("=host".parse::<Substitution>().is_err());
    }
}
