//! The JSON schema of v0 IR.
//!
//! The decoder accepts more: fields that it does not know, policies that it does not know, and a policy as a
//! list. What the schema accepts, the decoder accepts.

use hm_exec::ir::Pipeline;
use serde_json::{Value, json};

use crate::config::step_args_schema;

/// Returns the schema.
pub(super) fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pipeline",
        "description": "A pipeline: a graph of shell steps (v0 IR).",
        "type": "object",
        "required": ["graph"],
        "properties": {
            "version": { "description": "The version of the format.", "const": Pipeline::VERSION },
            "default_image": {
                "description": "The image of steps that build in no other step and name none.",
                "type": ["string", "null"],
            },
            "timeout_seconds": timeout("The time limit of the whole build, in seconds."),
            "graph": graph(),
        },
        "$defs": { "env": env(), "step": step(), "cache": cache(), "policy": policy() },
    })
}

fn graph() -> Value {
    let position = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    let kinds = json!({
        "description": "`builds_in`: the second step starts from the files of the first. `depends_on`: it only \
            waits for it.",
        "enum": ["builds_in", "depends_on"],
    });
    json!({
        "type": "object",
        "required": ["nodes", "edge_property", "edges"],
        "properties": {
            "nodes": {
                "description": "The steps. Edges name them by position, from 0.",
                "type": "array",
                "maxItems": Pipeline::MAX_STEPS,
                "items": {
                    "type": "object",
                    "required": ["step", "env"],
                    "properties": { "step": { "$ref": "#/$defs/step" }, "env": { "$ref": "#/$defs/env" } },
                },
            },
            "node_holes": { "description": "Always empty.", "type": "array", "maxItems": 0 },
            "edge_property": { "const": "directed" },
            "edges": {
                "description": "From the step that comes first to the one that waits for it.",
                "type": "array",
                "items": {
                    "type": "array",
                    "prefixItems": [position, position, kinds],
                    "items": false,
                    "minItems": 3,
                },
            },
        },
    })
}

fn step() -> Value {
    json!({
        "type": "object",
        "required": ["key", "cmd"],
        "properties": {
            "key": { "description": "The name, unique within the pipeline.", "type": "string", "minLength": 1 },
            "label": { "description": "The name that people see.", "type": ["string", "null"] },
            "cmd": { "description": "The command, given to `sh -c`.", "type": "string" },
            "image": {
                "description": "The image that a step starts from that builds in no other one.",
                "type": ["string", "null"],
            },
            "env": {
                "description": "The step's own variables, which the `env` beside the step has, too.",
                "anyOf": [{ "$ref": "#/$defs/env" }, { "type": "null" }],
            },
            "timeout_seconds": timeout("The time limit of one attempt, in seconds."),
            "cache": { "anyOf": [{ "$ref": "#/$defs/cache" }, { "type": "null" }] },
            "runner": { "description": "The name of the runner.", "type": ["string", "null"] },
            "runner_args": {
                "description": "Arguments of the step: the engine's, and those of its runner. Here are those of \
                    the runners of hm.",
                "type": ["object", "null"],
                "properties": step_args_schema(),
            },
        },
    })
}

fn env() -> Value {
    json!({
        "description": "The variables of the command: the pipeline's, with the step's own on top.",
        "type": "object",
        "additionalProperties": { "type": "string" },
    })
}

fn timeout(description: &str) -> Value {
    json!({ "description": description, "type": ["integer", "null"], "minimum": 1, "maximum": u32::MAX })
}

/// Returns the schema of a step's policy, which is one of the policies and has a key.
fn cache() -> Value {
    json!({
        "description": "Whether a later run may use the step's result.",
        "$ref": "#/$defs/policy",
        "properties": {
            "key": {
                "description": "What the result depends on, besides all that the step starts from. Without a key, \
                    the step is not cached.",
                "type": ["string", "null"],
            },
        },
    })
}

fn policy() -> Value {
    json!({
        "type": "object",
        "required": ["policy"],
        "properties": {
            "policy": {
                "description": "`on_change`: until a file changes. `ttl`: for a time. `forever`. `compose`: as long \
                    as all `sub_policies` allow it. `none`.",
                "enum": ["none", "forever", "ttl", "on_change", "compose"],
            },
            "paths": {
                "description": "Files of the source, for `on_change`. `*`, `?`, `[..]` and `**` are patterns.",
                "type": "array",
                "items": { "type": "string" },
            },
            "duration_seconds": { "description": "The time, for `ttl`.", "type": "number", "minimum": 0 },
            "env_keys": {
                "description": "The variables that are part of the key.",
                "type": "array",
                "items": { "type": "string" },
            },
            "sub_policies": {
                "description": "The policies, for `compose`.",
                "type": "array",
                "items": { "$ref": "#/$defs/policy" },
            },
        },
    })
}
