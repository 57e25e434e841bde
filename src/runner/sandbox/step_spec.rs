//! What a step adds to its jail.

use std::{collections::BTreeMap, ffi::CString};

use super::{
    boot::Boot,
    cache_dirs::AttachedCache,
    cgroup::Limited,
    jail::{DEFAULT_ENV, JailSpec, SecretFile},
};
use crate::{
    ir::Env,
    network::resolver_config,
    runner::{ExecutorInput, Limits, Network, RunnerError, StepContext},
};

/// Adds a step's command, limits and secrets to its jail.
pub(super) fn step_spec(
    jail: JailSpec,
    boot: &Boot,
    (limits, limited): (&Limits, &Limited),
    ctx: &StepContext,
    input: &ExecutorInput,
) -> Result<JailSpec, RunnerError> {
    let secret = |(name, value): (&str, &[u8])| -> Result<SecretFile, RunnerError> {
        if matches!(name, "" | "." | "..") || name.contains('/') {
            let message = format!("invalid secret name `{name}`: it is the name of a file");
            return Err(RunnerError::unsupported(message));
        }
        Ok(SecretFile { name: c_string("a secret's name", name)?, value: value.to_owned() })
    };
    let inputs = boot.inputs.iter().flat_map(|inputs| inputs.iter()).map(|input| &input.bind);
    Ok(JailSpec {
        binds: boot.binds.iter().chain(inputs).cloned().collect(),
        overlays: boot.caches.iter().map(AttachedCache::mount).collect::<Result<_, _>>()?,
        secrets: ctx.secrets.iter().map(secret).collect::<Result<_, _>>()?,
        resolver: (limits.network == Network::Private).then(resolver_config),
        own_names: limits.services.keys().cloned().collect(),
        shares_network: limits.network == Network::Host,
        cgroups: limited.procs(),
        group_views: limited.views(),
        watch: limited.watch(),
        memory_bytes: limits.memory.map(|memory| memory.bytes),
        workdir: c_string("the work directory", &*input.workdir)?,
        argv: vec![c"/bin/sh".into(), c"-c".into(), c_string("the command", &*input.step.cmd)?],
        env: environment(&boot.env, &input.env)?,
        ..jail
    })
}

/// Returns the command's variables. The step's own override the image's, which override the defaults.
pub(super) fn environment(image: &Env, env: &Env) -> Result<Vec<CString>, RunnerError> {
    let mut all = BTreeMap::from(DEFAULT_ENV);
    all.extend(image.iter().chain(env).map(|(name, value)| (name.as_str(), value.as_str())));
    all.into_iter().map(|(name, value)| c_string(name, format!("{name}={value}"))).collect()
}

pub(crate) fn c_string(what: &str, text: impl Into<Vec<u8>>) -> Result<CString, RunnerError> {
    CString::new(text).map_err(|_| RunnerError::unsupported(format!("{what} contains a NUL byte")))
}
