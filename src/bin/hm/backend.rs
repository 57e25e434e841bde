//! The backend of a whole build, and options that the published `hm` has for builds on its service.

use hm_exec::{Plan, plan::BindOptions};

use crate::{
    config::{BackendName, Sourced, ValueSource},
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

/// The runner of virtual machines. In the published `hm`, it is the name of the container runner.
const VM: &str = "vm";

const DOCKER: &str = "docker";

/// Where the build runs.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct BackendArgs {
    /// Where the build runs [default: local]
    #[arg(long, value_enum, value_name = "NAME")]
    backend: Option<BackendName>,

    /// Same as `--backend cloud`
    #[arg(long, hide = true, conflicts_with = "backend")]
    cloud: bool,

    /// Branch to record with a build on the service; without effect on this machine
    #[arg(short, long, value_name = "NAME")]
    branch: Option<String>,

    /// Message to record with a build on the service; without effect on this machine
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// Organization of a build on the service; without effect on this machine
    #[arg(long, value_name = "SLUG")]
    org: Option<String>,

    /// Return when the build has been submitted to the service
    #[arg(long)]
    no_watch: bool,
}

impl BackendArgs {
    /// Returns the backend that the arguments name.
    pub(crate) fn named(&self) -> Option<Sourced<BackendName>> {
        match self.backend {
            Some(backend) => Some(Sourced::new(backend, ValueSource::Argument("--backend"))),
            None => self.cloud.then(|| Sourced::new(BackendName::Cloud, ValueSource::Argument("--cloud"))),
        }
    }

    /// Returns the branch to record.
    pub(crate) fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// Returns the message to record.
    pub(crate) fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// Returns the organization of a build on the service.
    pub(crate) fn org(&self) -> Option<&str> {
        self.org.as_deref()
    }

    /// Returns whether to wait for the end of a build on the service.
    pub(crate) fn watches(&self) -> bool {
        !self.no_watch
    }

    /// Applies the backend to a plan. Returns an error if an argument is for another backend.
    pub(crate) fn apply(&self, plan: Plan, bind: &mut BindOptions, backend: &Sourced<BackendName>) -> Outcome<Plan> {
        if backend.value == BackendName::Cloud {
            return Ok(plan);
        }
        if self.no_watch {
            return Err(Failure::input("`--no-watch` is not possible: a build on this machine ends with hm")
                .hint("remove the option"));
        }
        apply(plan, bind, backend)
    }
}

/// Applies a backend of this machine to a plan.
pub(crate) fn apply(plan: Plan, bind: &mut BindOptions, backend: &Sourced<BackendName>) -> Outcome<Plan> {
    if backend.value != BackendName::Docker {
        return Ok(plan);
    }
    bind.runner.get_or_insert_with(|| DOCKER.into());
    let (plan, moved) = in_containers(plan)?;
    // The published `hm` writes it there when it saves another key.
    if backend.source.is_in_shared_file() {
        to_stderr(&format!(
            "note: running steps in containers, because {} sets `backend = \"docker\"`",
            backend.source
        ));
    }
    if moved > 0 {
        to_stderr(&format!("note: `--backend docker` runs steps on runner `{VM}` in containers ({moved} of them)"));
    }
    Ok(plan)
}

/// Replaces runner `vm` by `docker`. Returns the new plan, and the number of steps.
fn in_containers(plan: Plan) -> Outcome<(Plan, usize)> {
    let is_vm = |node: &&hm_exec::ir::Node| node.step.runner.as_deref() == Some(VM);
    let moved = plan.pipeline().nodes.iter().filter(is_vm).count();
    if moved == 0 {
        return Ok((plan, 0));
    }
    let failed = |error: anyhow::Error| Failure::input("failed to move steps to containers").because(error);
    let mut ir: serde_json::Value = serde_json::from_str(plan.ir_json()).map_err(|error| failed(error.into()))?;
    let nodes = ir.pointer_mut("/graph/nodes").and_then(serde_json::Value::as_array_mut);
    for runner in nodes.into_iter().flatten().filter_map(|node| node.pointer_mut("/step/runner")) {
        if runner == VM {
            *runner = DOCKER.into();
        }
    }
    Ok((Plan::parse(ir.to_string()).map_err(|error| failed(error.into()))?, moved))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_on_virtual_machines_move_to_containers_and_others_stay() {
        let steps = [("a", "vm"), ("b", "process"), ("c", "vm")];
        let nodes = steps.map(
            |(key, runner)| serde_json::json!({ "step": { "key": key, "cmd": "true", "runner": runner }, "env": {} }),
        );
        let graph = serde_json::json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
        let plan = Plan::parse(serde_json::json!({ "version": "0", "graph": graph }).to_string()).unwrap();
        let (plan, moved) = in_containers(plan).unwrap();
        let runners: Vec<_> = plan.pipeline().nodes.iter().map(|node| node.step.runner.as_deref().unwrap()).collect();
        assert_eq!((moved, runners), (2, vec!["docker", "process", "docker"]));
        assert_eq!(in_containers(plan).unwrap().1, 0);
    }
}
