//! A project whose steps run on a [`StockEngine`].

use std::process::Command;

use serde_json::{Value, json};

use super::{
    images::Image,
    project::{Ended, Project},
    remote_engine::step_program,
    stock_engine::{Habits, StockEngine},
};

/// An engine with some habits, and a project with steps for it.
pub(crate) struct Stock {
    pub(crate) engine: StockEngine,
    pub(crate) project: Project,
}

impl Stock {
    /// Starts an engine, and writes a pipeline of steps, each with a key, a command and more. Returns `None`
    /// if the test is skipped.
    pub(crate) fn new(habits: Habits, steps: &[(&str, &str, Value)]) -> Option<Self> {
        step_program()?;
        let stock = Self { engine: StockEngine::start(habits), project: Project::new() };
        stock.write(steps);
        Image::shell().write_oci(&stock.project.dir.with_file_name("image"), "it");
        Some(stock)
    }

    /// Writes a pipeline of steps in place of the last one.
    pub(crate) fn write(&self, steps: &[(&str, &str, Value)]) {
        let nodes = steps.iter().map(|(key, cmd, more)| {
            let mut step = more.clone();
            step["key"] = json!(key);
            step["cmd"] = json!(cmd);
            json!({ "step": step, "env": {} })
        });
        let nodes: Vec<Value> = nodes.collect();
        let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
        self.project
            .file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    }

    pub(crate) fn hm(&self, args: &[&str]) -> Command {
        let image = format!("host=oci:{}:it", self.project.dir.with_file_name("image").display());
        let mut hm = self.project.hm(&["run", "--runner", "cloud", "--format", "json", "--image", &image]);
        hm.args(["--remote", &self.engine.url()]).args(args);
        hm
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Ended::of(&mut self.hm(args))
    }
}

/// Returns the lines of output in a report.
pub(crate) fn lines(ended: &Ended) -> Vec<String> {
    let line = |event: &Value| Some(event["line"].as_str()?.to_owned());
    ended.events().iter().filter_map(line).filter(|line| !line.starts_with("unpack")).collect()
}

/// Returns how the steps of a report ended: the status, and the message.
pub(crate) fn ends(ended: &Ended) -> Vec<(String, String)> {
    let ends = ended.events().into_iter().filter(|event| event["kind"] == "step_end");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ends.map(|event| (text(&event["status"]), text(&event["message"]))).collect()
}
