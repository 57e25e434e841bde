//! What a project's `.hm/hm.toml` and `.hm/config.toml` request beyond the sandbox, as listed in
//! `docs/design/trust.md`.
//!
//! A key requires consent if it sends anything to a machine that the user did not name, or if it runs or
//! reads a file of the machine outside of a sandbox. A key without effect, because the user sets the same or
//! another value, does not require it.

use std::path::PathBuf;

use hm_exec::project::ProjectDir;

use super::{
    args::Sharing,
    cloud,
    layers::ConfigPlace,
    schema::{BackendName, ConfigFile},
    services,
    sources::{ConfigSources, Project},
    steps,
};
use crate::{failure::Outcome, trust::Permission};

/// Returns the requests in the project's file. With `all`, includes those that have no effect because no
/// engine is named.
pub(super) fn of(settings: &ConfigSources, project: Option<&ProjectDir>, all: bool) -> Outcome<Vec<Permission>> {
    let ConfigFile { docker, vm, cache, .. } = &settings.project;
    let mut permissions = Vec::new();
    service(settings, all, &mut permissions)?;
    remote(settings, project, all, &mut permissions)?;
    if let Some(host) = &docker.host
        && settings.docker_host.is_none()
        && settings.user.docker.host.as_ref() != Some(host)
    {
        permissions.push(Permission::new("[docker] host", host, "this daemon runs containers and receives the source"));
    }
    if let Some(name) = &cache.share {
        let effect = "cached results are shared with every project that has the same value";
        permissions.push(Permission::new("[cache] share", name, effect));
    }
    permissions.extend(steps::permissions(&settings.project, project.map(ProjectDir::path)));
    permissions.extend(services::permissions(&settings.project, project.map(ProjectDir::path)));
    for ((key, path), (_, users)) in vm.paths().into_iter().zip(settings.user.vm.paths()) {
        if let Some(path) = path
            && users.as_ref() != Some(path)
        {
            permissions.push(Permission::new(
                format!("[vm] {key}"),
                path.display(),
                "it is used as your user, outside of any sandbox",
            ));
        }
    }
    Ok(permissions)
}

/// Adds the requests about the backend, and about the hosted service. With `all`, includes those that
/// have no effect because builds do not run there.
fn service(settings: &ConfigSources, all: bool, permissions: &mut Vec<Permission>) -> Outcome<()> {
    let backend = settings.backend()?;
    let is_users = || settings.backend_of(Project::IsIgnored).is_ok_and(|users| users.value == backend.value);
    // The sandbox needs no consent, even if the user prefers another backend.
    if backend.value != BackendName::Local && backend.source.is_projects() && !is_users() {
        let effect = match backend.value {
            BackendName::Cloud => "builds, with their source, are sent to the hosted service",
            _ => "steps run in containers instead of the sandbox",
        };
        permissions.push(Permission::new("backend", backend.value.as_str(), effect));
    }
    if !all && backend.value != BackendName::Cloud {
        return Ok(());
    }
    let asked = cloud::api_url(settings, Project::Counts)?;
    let users = cloud::api_url(settings, Project::IsIgnored)?;
    if asked.source.is_projects() && cloud::comparable(&asked.value) != cloud::comparable(&users.value) {
        let effect = "builds, with their source, are sent to this service";
        permissions.push(Permission::new("[cloud] api_url", &asked.value, effect));
    }
    let pages = cloud::app_url(settings, Project::Counts, &asked)?;
    if settings.project.cloud.app_url.is_some()
        && pages.source.is_projects()
        && cloud::app_url(settings, Project::IsIgnored, &users)?.value != pages.value
    {
        permissions.push(Permission::new("[cloud] app_url", &pages.value, "links in the output lead there"));
    }
    Ok(())
}

/// Adds the requests of `[remote]`: every key but `jobs` and `cache = "off"`.
fn remote(
    settings: &ConfigSources,
    project: Option<&ProjectDir>,
    all: bool,
    permissions: &mut Vec<Permission>,
) -> Outcome<()> {
    let layers = settings.layers();
    let (own, user) = (&layers.project, &layers.user);
    // If no engine is named, none of it has any effect.
    let (url, place) = match layers.url() {
        Some(named) => named,
        None if all => ("", ConfigPlace::User),
        None => return Ok(()),
    };
    if place == ConfigPlace::Project && !layers.is_users(url) {
        permissions.push(Permission::new(
            "[remote] endpoint",
            url,
            "steps, the source and results are sent to this engine",
        ));
    }
    // The tables that take precedence over the project's file.
    let above = [&layers.arguments, &layers.environment];
    let belongs = layers.belongs(ConfigPlace::Project, url);
    if let Some(logs) = own.logs.as_ref().filter(|_| belongs && above.iter().all(|table| table.logs.is_none()))
        && user.logs.as_ref() != Some(logs)
    {
        permissions.push(Permission::new("[remote] logs", logs, "the output of steps is read from this address"));
    }
    if let Some(instance) = own.instance.as_ref().filter(|_| above.iter().all(|table| table.instance.is_none()))
        && user.instance.as_ref() != Some(instance)
    {
        permissions.push(Permission::new(
            "[remote] instance",
            instance,
            "this instance of the engine receives what is sent",
        ));
    }
    for (name, value) in own.headers.iter().filter(|_| belongs) {
        if user.headers.get(name) != Some(value) {
            permissions.push(Permission::secret(
                format!("[remote] headers.{name}"),
                value,
                "sent with every call to the engine",
            ));
        }
    }
    for (name, value) in &own.platform {
        if !above.iter().any(|table| table.platform.contains_key(name)) && user.platform.get(name) != Some(value) {
            permissions.push(Permission::new(
                format!("[remote] platform.{name}"),
                value,
                "selects the workers that run steps",
            ));
        }
    }
    if own.cache.is_some_and(|cache| cache != Sharing::Off && user.cache != Some(cache))
        && above.iter().all(|table| table.cache.is_none())
    {
        let how = format!("{:?}", own.cache.unwrap_or(Sharing::Both)).to_lowercase();
        permissions.push(Permission::new("[remote] cache", how, "results are shared with others through the engine"));
    }
    let files: [(&str, &Option<PathBuf>); 3] = [("ca", &own.ca), ("cert", &own.cert), ("key", &own.key)];
    for (key, path) in files.into_iter().filter(|_| belongs) {
        let Some(path) = path else { continue };
        // The file's content determines which servers are trusted, so consent applies to the content, too.
        let content = match project {
            Some(project) => layers.files.read(project, path)?,
            None => Vec::new(),
        };
        let effect = "this file decides which engine is trusted, or who you are there";
        permissions.push(Permission::new(format!("[remote] {key}"), path.display(), effect).with_content(&content));
    }
    Ok(())
}
