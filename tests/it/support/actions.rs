//! Actions built by hand, as `./hm-step input.json`, and their results.

use std::{collections::BTreeMap, sync::Mutex};

use bazel_remote_apis::google::{
    bytestream::{ReadRequest, byte_stream_client::ByteStreamClient},
    longrunning::{CancelOperationRequest, Operation, operation::Result as Ended, operations_client::OperationsClient},
};
use hm_exec::{
    remote::{
        Blob, Cas, Digest, DigestFunction, DirectoryTree, Endpoint, EndpointOptions, FileAttributes,
        reapi::{self, execution_client::ExecutionClient},
    },
    step::{Exit, Limits, Lower, StepInput, StepOutput, VERSION},
    store::ImageDigest,
};
use prost::Message;
use tonic::{Streaming, transport::Channel};

use super::images::{BUSYBOX, Layer};

/// A layer as it is uploaded.
#[derive(Debug, Clone)]
pub(crate) struct TestLayer {
    pub(crate) digest: Digest,
    pub(crate) diff_id: String,
}

/// The result of an Action.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) output: StepOutput,
    pub(crate) layer: Option<TestLayer>,
}

/// An engine, and what its Actions share.
pub(crate) struct Actions {
    pub(crate) cas: Cas,
    channel: Channel,
    shell: TestLayer,
    source: Mutex<DirectoryTree>,
}

impl Actions {
    /// Uploads a shell and a source of one file.
    pub(crate) async fn new(url: &str) -> Self {
        let cas = Cas::new(Endpoint::new(EndpointOptions::new(url)).unwrap());
        let channel = channel(url).await;
        let mut shell = Layer::new().dir("bin").file("bin/busybox", 0o755, std::fs::read(BUSYBOX).unwrap());
        for name in ["sh", "cat", "echo", "sleep", "ls", "rm", "id", "trap", "mkdir"] {
            shell = shell.symlink(&format!("bin/{name}"), "busybox");
        }
        let tar = shell.bytes();
        let blob = Blob::of_bytes(tar.clone());
        let shell = TestLayer { digest: blob.digest, diff_id: ImageDigest::of(&tar).to_string() };
        let file = Blob::of_bytes(*b"from the source\n");
        let mut source = DirectoryTree::default();
        let attributes = FileAttributes { mode: 0o644, mtime: (1_600_000_000, 0) };
        source.add_file(b"source/workspace/dir/file", file.digest, attributes).unwrap();
        cas.upload(vec![blob, file]).await.unwrap();
        Self { cas, channel, shell, source: Mutex::new(source) }
    }

    /// Uploads a file of the source.
    pub(crate) async fn source_file(&self, path: &str, content: &[u8]) {
        let blob = Blob::of_bytes(content);
        let attributes = FileAttributes { mode: 0o755, mtime: (1_600_000_000, 0) };
        let path = format!("source/workspace/{path}");
        self.source.lock().unwrap().add_file(path.as_bytes(), blob.digest, attributes).unwrap();
        self.cas.upload(vec![blob]).await.unwrap();
    }

    /// Returns the input of a command over the shell, the source, and further layers.
    pub(crate) fn input(&self, command: &str, above: &[TestLayer]) -> StepInput {
        let layer = |(at, layer): (usize, &TestLayer)| Lower::Layer {
            path: format!("layers/{at}"),
            diff_id: layer.diff_id.clone(),
        };
        let mut stack: Vec<Lower> = [&self.shell].into_iter().enumerate().map(layer).collect();
        stack.push(Lower::Workspace { path: "source".into() });
        stack.extend(above.iter().enumerate().map(|(at, it)| layer((at + 1, it))));
        StepInput {
            version: VERSION,
            command: command.into(),
            env: BTreeMap::from([("GREETING".into(), "hello".into())]),
            workdir: "/workspace".into(),
            stack,
            commit: true,
            keep: false,
            timeout_ms: None,
            grace_ms: 1000,
            limits: Limits::default(),
        }
    }

    /// Uploads an Action.
    pub(crate) async fn action(&self, input: &StepInput, above: &[TestLayer], arguments: &[&str]) -> Digest {
        let json = Blob::of_bytes(serde_json::to_vec(input).unwrap());
        let mut tree = self.source.lock().unwrap().clone();
        let attributes = FileAttributes { mode: 0o644, mtime: (0, 0) };
        tree.add_file(b"input.json", json.digest, attributes).unwrap();
        for (at, layer) in [&self.shell].into_iter().chain(above).enumerate() {
            tree.add_file(format!("layers/{at}").as_bytes(), layer.digest, attributes).unwrap();
        }
        let tree = tree.finish();
        let command = reapi::Command {
            arguments: arguments.iter().map(|&it| it.into()).collect(),
            output_paths: vec!["result.json".into(), "layer.tar.zst".into()],
            ..Default::default()
        };
        let command = Blob::of_bytes(command.encode_to_vec());
        let action = reapi::Action {
            command_digest: Some(command.digest.into()),
            input_root_digest: Some(tree.root.into()),
            do_not_cache: true,
            salt: uuid::Uuid::new_v4().as_bytes().to_vec(),
            ..Default::default()
        };
        let action = Blob::of_bytes(action.encode_to_vec());
        let digest = action.digest;
        self.cas.upload(tree.directories.into_iter().chain([json, command, action]).collect()).await.unwrap();
        digest
    }

    /// Starts an Action.
    pub(crate) async fn execute(&self, action: Digest) -> Streaming<Operation> {
        let request =
            reapi::ExecuteRequest { action_digest: Some(action.into()), skip_cache_lookup: true, ..Default::default() };
        ExecutionClient::new(self.channel.clone()).execute(request).await.unwrap().into_inner()
    }

    /// Starts an Action for a command and the layers above the source.
    pub(crate) async fn start(&self, command: &str, above: &[TestLayer]) -> Streaming<Operation> {
        let action = self.action(&self.input(command, above), above, &["./hm-step", "input.json"]).await;
        self.execute(action).await
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, command: &str, above: &[TestLayer]) -> Done {
        let operations = self.start(command, above).await;
        self.end(operations).await.unwrap()
    }

    /// Waits until an Action ends, and returns a failed Action's response as the error. Reconnects if the
    /// stream breaks off.
    pub(crate) async fn end(&self, mut operations: Streaming<Operation>) -> Result<Done, reapi::ExecuteResponse> {
        let mut name = String::new();
        loop {
            match operations.message().await {
                Ok(Some(operation)) if operation.done => {
                    let Some(Ended::Response(response)) = operation.result else { panic!("{:?}", operation.result) };
                    return self.done(reapi::ExecuteResponse::decode(&response.value[..]).unwrap()).await;
                }
                Ok(Some(operation)) => name = operation.name,
                broken => {
                    assert!(!name.is_empty(), "{broken:?}");
                    operations = self.wait(&name).await;
                }
            }
        }
    }

    async fn wait(&self, name: &str) -> Streaming<Operation> {
        for _ in 0..600 {
            let request = reapi::WaitExecutionRequest { name: name.into() };
            if let Ok(operations) = ExecutionClient::new(self.channel.clone()).wait_execution(request).await {
                return operations.into_inner();
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        panic!("the engine does not come back");
    }

    async fn done(&self, response: reapi::ExecuteResponse) -> Result<Done, reapi::ExecuteResponse> {
        if response.status.as_ref().is_some_and(|status| status.code != 0) {
            return Err(response);
        }
        let Some(result) = response.result else { return Err(response) };
        let file = |name: &str| result.output_files.iter().find(|file| file.path == name);
        let digest = |file: &reapi::OutputFile| DigestFunction::Sha256.parse(file.digest.as_ref().unwrap()).unwrap();
        let json = self.cas.read(digest(file("result.json").unwrap()), 1 << 20).await.unwrap();
        let output = StepOutput::decode(&json).unwrap();
        let stdout = match &result.stdout_digest {
            Some(stdout) => self.cas.read(DigestFunction::Sha256.parse(stdout).unwrap(), 1 << 30).await.unwrap(),
            None => result.stdout_raw.clone(),
        };
        let layer = file("layer.tar.zst").map(digest);
        assert_eq!(layer.is_some(), output.layer.is_some());
        let layer = layer.zip(output.layer.clone());
        let layer = layer.map(|(digest, layer)| TestLayer { digest, diff_id: layer.diff_id });
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        Ok(Done { code: result.exit_code, stdout, output, layer })
    }

    pub(crate) async fn cancel(&self, name: &str) {
        let request = CancelOperationRequest { name: name.into() };
        OperationsClient::new(self.channel.clone()).cancel_operation(request).await.unwrap();
    }
}

/// Reads a log stream until it contains `text`.
pub(crate) async fn read_log_until(url: &str, name: &str, text: &str) -> String {
    let request = ReadRequest { resource_name: name.into(), ..Default::default() };
    let mut pieces = ByteStreamClient::new(channel(url).await).read(request).await.unwrap().into_inner();
    let mut seen = String::new();
    while !seen.contains(text) {
        let piece = pieces.message().await.unwrap().unwrap_or_else(|| panic!("the end after {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&piece.data));
    }
    seen
}

/// Returns the name of an operation and the name of the log stream of its standard output, once the engine
/// reports both.
pub(crate) async fn names(operations: &mut Streaming<Operation>) -> (String, String) {
    loop {
        let operation = operations.message().await.unwrap().expect("an operation");
        assert!(!operation.done, "{operation:?}");
        let metadata = operation.metadata.unwrap_or_default();
        let metadata = reapi::ExecuteOperationMetadata::decode(&metadata.value[..]).unwrap();
        if !metadata.stdout_stream_name.is_empty() {
            return (operation.name, metadata.stdout_stream_name);
        }
    }
}

pub(crate) async fn channel(url: &str) -> Channel {
    let url = url.replace("grpc://", "http://");
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

/// Returns the exit code of a command if it exited by itself.
pub(crate) fn exited(done: &Done) -> Option<i32> {
    match done.output.exit {
        Exit::Exited { code, .. } => Some(code),
        _ => None,
    }
}
