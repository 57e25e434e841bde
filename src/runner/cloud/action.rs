//! A step as an Action: its content and its blobs.

use std::{collections::BTreeMap, time::Duration};

use prost::Message;

use super::{
    boot::{Boot, Part},
    source::RemoteSource,
};
use crate::{
    cache::Cacheable,
    remote::{Blob, Digest, DigestFunction, DirectoryTree, FileAttributes, TreeError, reapi},
    runner::{ExecutorInput, Limits, Network, RunnerError, StepContext},
    step::{self, Lower, StepInput},
    transfer::RemoteLayer,
};

/// The time that a worker has beyond the step's own, for fetching and packing.
pub(super) const AROUND_STEP: Duration = Duration::from_secs(20 * 60);

/// The file names of an Action.
pub(super) const PROGRAM: &str = "hm-step";
const INPUT: &str = "input.json";
pub(super) const RESULT: &str = "result.json";
pub(super) const LAYER: &str = "layer.tar.zst";
const SOURCE: &str = "source";

/// The platform property with the directory in which workers keep unpacked layers.
const LAYER_CACHE_PROPERTY: &str = "hm-layer-cache";

/// An Action that is ready to be executed once its blobs are at the engine.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) action: Digest,
    /// The small blobs: all except the program.
    pub(super) blobs: Vec<Blob>,
    /// Whether the engine may answer with the cached result of an equal Action.
    pub(super) cacheable: bool,
    /// The time limit for the worker, if the Action has one.
    pub(super) bound: Option<Duration>,
}

/// The parts of an Action, all of which are at the engine.
pub(super) struct Parts<'a> {
    pub(super) function: DigestFunction,
    pub(super) boot: &'a Boot,
    /// The names of the layers among the boot's parts, in their order.
    pub(super) layers: &'a [RemoteLayer],
    /// The source as a tree, unless it is among the layers.
    pub(super) source: Option<RemoteSource>,
    pub(super) program: Digest,
    pub(super) platform: &'a [(String, String)],
    pub(super) limits: &'a Limits,
    /// The longest time limit that the engine may accept, if it refused a longer one.
    pub(super) longest_bound: Option<Duration>,
}

impl Parts<'_> {
    /// Creates the Action of one attempt.
    pub(super) fn prepare(&self, ctx: &StepContext, input: &ExecutorInput) -> Result<Prepared, RunnerError> {
        let step_input = self.step_input(ctx, input);
        let json = serde_json::to_vec(&step_input)
            .map_err(|error| RunnerError::infrastructure("encode the step's input", error))?;
        let json = Blob::named_by(self.function, json);
        let tree = self
            .input_root(json.digest)
            .map_err(|error| RunnerError::infrastructure("make the step's input root", anyhow::Error::new(error)))?;
        let command = self.message(&self.command());
        // The engine does not know the maximum age of a result. So it must not answer for steps that have
        // one.
        let cacheable = Cacheable::of(&input.step).filter(|policy| policy.max_age.is_none()).is_some();
        let salt = match cacheable {
            true => serde_json::to_vec(&input.step.cache).unwrap_or_default(),
            false => uuid::Uuid::new_v4().as_bytes().to_vec(),
        };
        // The step's own limit is kept by hm-step. This one is for workers that lost it.
        let bound = input
            .step
            .timeout_seconds
            .map(|it| Duration::from_secs(it.get().into()).saturating_add(ctx.grace).saturating_add(AROUND_STEP));
        let bound = bound.filter(|bound| self.longest_bound.is_none_or(|longest| *bound <= longest));
        let action = self.message(&reapi::Action {
            command_digest: Some(command.digest.into()),
            input_root_digest: Some(tree.root.into()),
            timeout: bound.map(|bound| bazel_remote_apis::google::protobuf::Duration {
                seconds: i64::try_from(bound.as_secs()).unwrap_or(i64::MAX),
                nanos: 0,
            }),
            do_not_cache: !cacheable,
            salt,
            platform: Some(self.platform()),
        });
        let digest = action.digest;
        let mut blobs = tree.directories;
        blobs.extend([json, command, action]);
        Ok(Prepared { action: digest, blobs, cacheable: cacheable && ctx.attempt == 1, bound })
    }

    fn step_input(&self, ctx: &StepContext, input: &ExecutorInput) -> StepInput {
        let mut env: BTreeMap<String, String> = self.boot.env.clone();
        env.extend(input.env.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let mut layers = self.layers.iter().enumerate();
        let stack = self.boot.parts.iter().filter_map(|part| match part {
            Part::Source => Some(Lower::Workspace { path: SOURCE.into() }),
            Part::Layer(_) | Part::Rootfs(_) => layers
                .next()
                .map(|(index, name)| Lower::Layer { path: layer_path(index), diff_id: name.diff_id.to_string() }),
        });
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        StepInput {
            version: step::VERSION,
            command: input.step.cmd.to_string(),
            env,
            workdir: input.workdir.to_string(),
            stack: stack.collect(),
            commit: input.cache_lookup.commits(),
            keep: ctx.keep,
            timeout_ms: input.step.timeout_seconds.map(|it| u64::from(it.get()) * 1000),
            grace_ms: millis(ctx.grace),
            limits: step_limits(self.limits),
        }
    }

    fn input_root(&self, json: Digest) -> Result<crate::remote::Tree, TreeError> {
        let mut root = DirectoryTree::new(self.function);
        let file = FileAttributes { mode: 0o644, mtime: (0, 0) };
        root.add_file(PROGRAM.as_bytes(), self.program, FileAttributes { mode: 0o755, ..file })?;
        root.add_file(INPUT.as_bytes(), json, file)?;
        if let Some(source) = self.source {
            root.add_tree(SOURCE.as_bytes(), source.root)?;
            let attributes = format!("{SOURCE}{}", step::ATTRIBUTES_SUFFIX);
            root.add_file(attributes.as_bytes(), source.attributes, file)?;
        }
        for (index, name) in self.layers.iter().enumerate() {
            root.add_file(layer_path(index).as_bytes(), name.blob, file)?;
        }
        Ok(root.finish())
    }

    #[expect(deprecated, reason = "engines of older versions look for the platform here")]
    fn command(&self) -> reapi::Command {
        reapi::Command {
            arguments: vec![format!("./{PROGRAM}"), INPUT.into()],
            output_paths: vec![LAYER.into(), RESULT.into()],
            environment_variables: layer_cache(self.platform).map(cache_variable).into_iter().collect(),
            platform: Some(self.platform()),
            ..Default::default()
        }
    }

    fn message(&self, message: &impl Message) -> Blob {
        Blob::named_by(self.function, message.encode_to_vec())
    }

    fn platform(&self) -> reapi::Platform {
        let mut properties: Vec<_> = self
            .platform
            .iter()
            .map(|(name, value)| reapi::platform::Property { name: name.clone(), value: value.clone() })
            .collect();
        properties.sort_by(|a, b| (&a.name, &a.value).cmp(&(&b.name, &b.value)));
        reapi::Platform { properties }
    }
}

/// Returns the directory for unpacked layers that the platform properties name.
pub(super) fn layer_cache(platform: &[(String, String)]) -> Option<&str> {
    platform.iter().find(|(name, _)| name == LAYER_CACHE_PROPERTY).map(|(_, dir)| &**dir)
}

fn cache_variable(dir: &str) -> reapi::command::EnvironmentVariable {
    let (name, value) = (step::LAYER_CACHE_VARIABLE.into(), dir.into());
    reapi::command::EnvironmentVariable { name, value }
}

fn layer_path(index: usize) -> String {
    format!("layers/{index}.tar.zst")
}

fn step_limits(limits: &Limits) -> step::Limits {
    step::Limits {
        memory_bytes: limits.memory.map(|memory| memory.bytes),
        cpus: limits.cpus.map(|cpus| cpus.0),
        pids: limits.pids.map(Into::into),
        network: match limits.network {
            // Binding refuses a step that asks for a private one. It is also the default, of other runners.
            Network::Host | Network::Private => step::Network::Host,
            Network::None => step::Network::None,
        },
    }
}
