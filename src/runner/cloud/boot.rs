//! The filesystem that a step boots from, before any part of it is transferred.

use crate::image;
use crate::source;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::error;
use crate::{
    blocking,
    image::Images,
    runner::{
        ExecutorInput, RunnerError, StepContext,
        image_notes::{StepNotes, no_image},
    },
    source::FrozenSource,
    store::{Base, CommitRequest, IdMap, LayerId, Snapshot, SourceId, Store},
};

/// A part of a step's filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// A layer of the store.
    Layer(LayerId),
    /// A directory with a whole root filesystem.
    Rootfs(PathBuf),
    /// The source tree.
    Source,
}

/// How a source is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceForm {
    /// As a tree of files, which the engine makes for each step.
    Tree,
    /// As layers, for workers that keep them.
    Layers,
}

/// The filesystem that a step boots from.
#[derive(Debug)]
pub(super) struct Boot {
    /// The parts, lowest first.
    pub(super) parts: Vec<Part>,
    pub(super) source: Arc<FrozenSource>,
    /// The variables that the image sets.
    pub(super) env: BTreeMap<String, String>,
    pub(super) id_map: IdMap,
    parent: Option<Arc<Snapshot>>,
    base: Base,
    delta: Option<LayerId>,
}

impl Boot {
    /// Looks up what `input` boots from. Fetches the image, if it names one.
    pub(super) async fn of(
        ctx: &StepContext,
        input: &ExecutorInput,
        store: &Arc<Store>,
        images: &Images,
        (id_map, source_form): (IdMap, SourceForm),
    ) -> Result<Self, RunnerError> {
        let source = ctx.frozen_source(store).await.map_err(error::store("freeze the source"))?;
        let parent = match &input.parent_snapshot {
            Some(snapshot) => {
                Some(store.snapshots().get(snapshot).map_err(error::store("read the parent's snapshot"))?)
            }
            None => None,
        };
        if let Some(parent) = &parent
            && parent.id_map != id_map
        {
            let why = "the parent's snapshot was made with another id mapping: run the parent step again";
            return Err(RunnerError::unsupported(why));
        }
        let base = match (&parent, &input.step.image) {
            (Some(parent), _) => parent.base.clone(),
            (None, Some(image)) => {
                let notes = StepNotes { bus: &ctx.event_bus, step_id: input.step_id };
                Box::pin(images.fetch(store, image, id_map, &notes)).await.map_err(no_image)?
            }
            (None, None) => Base::Host,
        };
        let (opened, old, new) = (Arc::clone(store), parent.clone(), Arc::clone(&source));
        let delta = blocking::run("compare the source", move || match old {
            Some(old) if old.source != new.id => {
                source::delta(&opened, &old, &new).map_err(error::store("compare the source"))
            }
            _ => Ok(None),
        });
        let delta = delta.await?;
        let (mut parts, mut env) = (Vec::new(), BTreeMap::new());
        match &base {
            Base::Host => {
                return Err(RunnerError::unsupported(
                    "image `host` is this machine's own system, which the engine cannot run: use another one, such as \
                     `--image host=debian:bookworm`",
                ));
            }
            Base::Rootfs(dir) => {
                let base_layer = image::base_layer(store, id_map).map_err(error::store("make the lowest layer"))?;
                parts.extend([Part::Layer(base_layer), Part::Rootfs(dir.clone())]);
            }
            Base::Image(digest) => {
                let image = image::stored::StoredImage::find(store, digest, id_map).map_err(no_image)?;
                parts.extend(image.layers.into_iter().rev().map(Part::Layer));
                env = image.env;
            }
        }
        match source_form {
            SourceForm::Tree => parts.push(Part::Source),
            SourceForm::Layers => parts.extend(source.layers.iter().rev().cloned().map(Part::Layer)),
        }
        parts.extend(parent.iter().flat_map(|parent| parent.layers.iter().rev()).cloned().map(Part::Layer));
        parts.extend(delta.clone().map(Part::Layer));
        Ok(Self { parts, source, env, id_map, parent, base, delta })
    }

    /// Returns the request that commits a snapshot of this step.
    pub(super) fn commit_request(&self) -> CommitRequest<'_> {
        CommitRequest {
            parent: self.parent.as_deref(),
            base: self.base.clone(),
            source: SourceId::clone(&self.source.id),
            delta: self.delta.clone(),
            id_map: self.id_map,
        }
    }
}
