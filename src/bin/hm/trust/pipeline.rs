//! What a pipeline requests beyond the sandbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use hm_exec::{
    Plan,
    image::image_path,
    plan::{BindOptions, DEFAULT_IMAGE},
    runner::{CacheArg, CacheScope, Network},
};
use serde_json::Value;

use super::Permission;

/// Runners whose steps run outside of any sandbox on this machine and are not services of the user's own.
const OUTSIDE: [(&str, &str); 1] = [("process", "its steps run as your user, with access to your files and network")];

/// Returns what a project's `plan` requests. Values from the command line need no consent: `options.runner`,
/// `options.network`, and the images that replace others.
pub(crate) fn of_plan(plan: &Plan, options: &BindOptions, project: &Path) -> Vec<Permission> {
    let nodes = &plan.pipeline().nodes;
    let mut permissions = Vec::new();
    for (runner, effect) in OUTSIDE {
        let named = nodes.iter().any(|node| node.step.runner.as_deref() == Some(runner));
        if named && options.runner.as_deref() != Some(runner) {
            permissions.push(Permission::new("runner", runner, effect));
        }
    }
    // With this machine's network, ports of it are nothing more. Steps on other machines have those machines'
    // network, and steps of `process` request more than a network.
    let asks = |runner: Option<&str>| {
        let runner = runner.or(options.runner.as_deref());
        !matches!(runner, Some("cloud" | "process"))
    };
    let is_named = |arg: &str| options.network == Some(Network::Host) && !matches!(arg, "caches" | "services");
    let asking = nodes.iter().filter(|node| asks(node.step.runner.as_deref()));
    for (name, value) in asking.filter_map(|node| node.step.runner_args.as_ref()?.as_object()).flatten() {
        if let Some((value, effect)) = of_step_arg(name, value, Some(project)).filter(|_| !is_named(name)) {
            let permission = Permission::new(name, value, effect);
            if !permissions.contains(&permission) {
                permissions.push(permission);
            }
        }
    }
    let default = plan.pipeline().default_image.as_deref().unwrap_or(DEFAULT_IMAGE);
    let roots = plan.dag().steps().filter(|step| plan.dag().lineage_parent(*step).is_none());
    let images: BTreeSet<&str> = roots.map(|step| nodes[step.get()].step.image.as_deref().unwrap_or(default)).collect();
    for image in images {
        let is_users = options.images.contains_key(image) || options.images.values().any(|named| named == image);
        if let Some((value, effect)) = of_image(image, Some(project)).filter(|_| !is_users) {
            permissions.push(Permission::new("image", value, effect));
        }
    }
    permissions
}

/// Returns what an image requests that a project names: the value that the user consents to, and its effect.
/// Without a project, every image in a file is outside of it.
pub(crate) fn of_image(image: &str, project: Option<&Path>) -> Option<(String, &'static str)> {
    let path = image_path(image)?;
    let place = match project {
        Some(project) => outside(&path, project)?,
        None => path,
    };
    // The same path may mean another place in another directory.
    let transport = image.split_once(':').map_or(image, |(transport, _)| transport);
    Some((format!("{transport}:{}", place.display()), "its steps can read these files outside of the project"))
}

/// Returns what an argument of a step requests, in its `runner_args` or in a `[step]` table: the value that
/// the user consents to, and its effect.
pub(crate) fn of_step_arg(name: &str, value: &Value, project: Option<&Path>) -> Option<(String, &'static str)> {
    match (name, value) {
        ("host_ports", Value::Array(ports)) if !ports.is_empty() => {
            let ports: Vec<String> = ports.iter().map(Value::to_string).collect();
            Some((ports.join(", "), "its steps reach these ports of this machine"))
        }
        // By the types that runners read: a value may be written in more than one way.
        ("network", value) if serde_json::from_value(value.clone()).is_ok_and(|it: Network| it == Network::Host) => {
            Some(("host".to_owned(), "its steps reach every server on this machine"))
        }
        ("caches", value) => {
            // What is no table of cache directories is refused at binding.
            let caches: BTreeMap<String, CacheArg> = serde_json::from_value(value.clone()).unwrap_or_default();
            let shared = caches.iter().filter(|(_, cache)| cache.scope == CacheScope::User);
            let names: Vec<&str> = shared.map(|(name, _)| name.as_str()).collect();
            let effect = "its steps write to these directories, which steps of your other projects use";
            (!names.is_empty()).then(|| (names.join(", "), effect))
        }
        // Every image, in any form that a runner might read: one service that is wrong hides no other one.
        ("services", Value::Object(services)) => {
            let images = services.values().filter_map(|service| match service {
                Value::Object(service) => service.get("image")?.as_str(),
                Value::Array(fields) => fields.first()?.as_str(),
                _ => None,
            });
            let (places, effects): (BTreeSet<String>, Vec<&str>) =
                images.filter_map(|image| of_image(image, project)).unzip();
            let places: Vec<String> = places.into_iter().collect();
            effects.first().map(|effect| (places.join(", "), *effect))
        }
        _ => None,
    }
}

/// Returns the target of `path`, if it is outside of the project.
fn outside(path: &Path, project: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // A path that does not exist is resolved textually.
    let place = absolute.canonicalize().unwrap_or_else(|_| {
        absolute.components().fold(PathBuf::new(), |mut place, part| {
            match part {
                Component::ParentDir => drop(place.pop()),
                part => place.push(part),
            }
            place
        })
    });
    (!place.starts_with(project)).then_some(place)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn permissions(steps: &str, edges: &str, options: &BindOptions, project: &Path) -> Vec<String> {
        let ir = format!(
            r#"{{"version":"0","graph":{{"nodes":[{steps}],"node_holes":[],"edge_property":"directed","edges":[{edges}]}}}}"#
        );
        of_plan(&Plan::parse(ir).unwrap(), options, project).iter().map(Permission::what).collect()
    }

    fn step(key: &str, more: &str) -> String {
        format!(r#"{{"step":{{"key":"{key}","cmd":"true"{more}}},"env":{{}}}}"#)
    }

    #[test]
    fn a_runner_that_isolates_nothing_asks_unless_the_user_names_it() {
        let steps = [step("a", r#","runner":"process""#), step("b", r#","runner":"docker""#)].join(",");
        let here = Path::new("/project");
        assert_eq!(permissions(&steps, "", &BindOptions::default(), here), [r#"runner = "process""#]);
        let named = BindOptions { runner: Some("process".into()), ..BindOptions::default() };
        assert_eq!(permissions(&steps, "", &named, here), [""; 0]);
        let other = BindOptions { runner: Some("sandbox".into()), ..BindOptions::default() };
        assert_eq!(permissions(&steps, "", &other, here).len(), 1);
        let plain = [step("a", ""), step("b", r#","image":"debian:bookworm","runner":"sandbox""#)].join(",");
        assert_eq!(permissions(&plain, "", &BindOptions::default(), here), [""; 0]);
    }

    #[test]
    fn ports_of_this_machine_ask_once() {
        let ports = r#","runner_args":{"network":"private","host_ports":[5000,6379]}"#;
        let steps = [step("a", ports), step("b", ports), step("c", r#","runner_args":{"host_ports":[]}"#)].join(",");
        let asked = permissions(&steps, "", &BindOptions::default(), Path::new("/project"));
        assert_eq!(asked, [r#"host_ports = "5000, 6379""#]);
    }

    #[test]
    fn the_machines_network_and_its_ports_ask_unless_the_user_names_the_network() {
        let here = Path::new("/project");
        let args = |key: &str, args: &str| step(key, &format!(r#","runner_args":{args}"#));
        let steps = [
            args("a", r#"{"network":"private","host_ports":[5001,80]}"#),
            args("b", r#"{"host_ports":[5001]}"#),
            args("c", r#"{"network":"host"}"#),
            args("d", r#"{"network":"none","memory":"1g"}"#),
        ]
        .join(",");
        let asked = [r#"host_ports = "5001, 80""#, r#"host_ports = "5001""#, r#"network = "host""#];
        assert_eq!(permissions(&steps, "", &BindOptions::default(), here), asked);
        let named = |network| BindOptions { network: Some(network), ..BindOptions::default() };
        assert_eq!(permissions(&steps, "", &named(Network::Host), here), [""; 0]);
        assert_eq!(permissions(&steps, "", &named(Network::Private), here), asked);
        let remote = BindOptions { runner: Some("cloud".into()), ..BindOptions::default() };
        assert_eq!(permissions(&steps, "", &remote, here), [""; 0]);
        let plain = [args("a", r#"{"network":"private"}"#), args("b", r#"{"host_ports":[]}"#)].join(",");
        assert_eq!(permissions(&plain, "", &BindOptions::default(), here), [""; 0]);
    }

    #[test]
    fn directories_that_all_projects_share_ask() {
        let caches = r#","runner_args":{"caches":{"a":"/a","b":{"path":"/b","scope":"user"},"c":{"path":"/c","scope":"project"}}}"#;
        let asked = permissions(&step("a", caches), "", &BindOptions::default(), Path::new("/project"));
        assert_eq!(asked, [r#"caches = "b""#]);
        // The network that the user names is about the network alone.
        let options = BindOptions { network: Some(Network::Host), ..BindOptions::default() };
        assert_eq!(permissions(&step("a", caches), "", &options, Path::new("/project")), [r#"caches = "b""#]);
    }

    #[test]
    fn other_spellings_ask_as_well() {
        for (args, expected) in [
            (r#"{"network":{"host":null}}"#, r#"network = "host""#),
            (r#"{"caches":{"k":{"path":"/x","scope":{"user":null}}}}"#, r#"caches = "k""#),
            (r#"{"caches":{"k":["/x","user"]}}"#, r#"caches = "k""#),
            (r#"{"services":{"s":{"image":"rootfs:/srv/x","cmd":"a"}}}"#, r#"services = "rootfs:/srv/x""#),
            (
                r#"{"services":{"a":{"image":"host"},"b":{"image":"rootfs:/srv/x","cmd":"a"}}}"#,
                r#"services = "rootfs:/srv/x""#,
            ),
            (r#"{"services":{"s":["rootfs:/srv/x"]}}"#, r#"services = "rootfs:/srv/x""#),
            (
                r#"{"services":{"s":{"image":"oci:/b:1"},"t":{"image":"oci:/a:1"},"u":{"step":"x"}}}"#,
                r#"services = "oci:/a, oci:/b""#,
            ),
        ] {
            let step = step("a", &format!(r#","runner_args":{args}"#));
            assert_eq!(permissions(&step, "", &BindOptions::default(), Path::new("/project")), [expected], "{args}");
        }
    }

    #[test]
    fn images_in_files_outside_of_the_project_ask() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let (project, beside) = (top.join("in"), top.join("beside"));
        fs::create_dir_all(project.join("root")).unwrap();
        fs::create_dir(&beside).unwrap();
        symlink("../beside", project.join("link")).unwrap();
        let of = |image: &str, options: &BindOptions| {
            permissions(&step("a", &format!(r#","image":"{image}""#)), "", options, &project)
        };
        let (here, out) = (project.display().to_string(), beside.display().to_string());
        for inside in ["host", "debian:bookworm", &format!("rootfs:{here}/root"), &format!("oci:{here}/missing:tag")] {
            assert_eq!(of(inside, &BindOptions::default()), [""; 0], "{inside}");
        }
        for (image, place) in [
            (format!("rootfs:{out}"), format!("rootfs:{out}")),
            ("rootfs:/".into(), "rootfs:/".into()),
            (format!("oci:{here}/../beside:tag"), format!("oci:{out}")),
            (format!("oci-archive:{here}/link"), format!("oci-archive:{out}")),
            (format!("docker-archive:{here}/missing/../../x:a:b"), format!("docker-archive:{}/x", top.display())),
        ] {
            assert_eq!(of(&image, &BindOptions::default()), [format!("image = \"{place}\"")], "{image}");
            let put = |from: &str, to: &str| BindOptions {
                images: [(from.to_owned(), to.to_owned())].into(),
                ..BindOptions::default()
            };
            assert_eq!(of(&image, &put(&image, "host")), [""; 0], "{image}");
            assert_eq!(of(&image, &put("other", &image)), [""; 0], "{image}");
        }
        let default = r#"{"version":"0","default_image":"rootfs:/","graph":{"nodes":[STEP],"node_holes":[],"edge_property":"directed","edges":[]}}"#;
        let plan = Plan::parse(default.replace("STEP", &step("a", ""))).unwrap();
        assert_eq!(of_plan(&plan, &BindOptions::default(), &project).len(), 1);
        // A child starts from its parent's snapshot.
        let steps = [step("a", ""), step("b", r#","image":"rootfs:/""#)].join(",");
        assert_eq!(permissions(&steps, r#"[0,1,"builds_in"]"#, &BindOptions::default(), &project), [""; 0]);
    }
}
