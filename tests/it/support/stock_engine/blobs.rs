//! Blobs in a directory, by digest function and hash.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bazel_remote_apis::google::rpc;
use hm_exec::remote::reapi::{self, digest_function::Value};
use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};
use uuid::Uuid;

use super::Habits;

/// A digest function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Sha256,
    Blake3,
}

impl Function {
    pub(super) fn value(self) -> Value {
        match self {
            Self::Sha256 => Value::Sha256,
            Self::Blake3 => Value::Blake3,
        }
    }

    fn dir(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }

    pub(super) fn digest(self, bytes: &[u8]) -> reapi::Digest {
        let hash = match self {
            Self::Sha256 => Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
            Self::Blake3 => blake3::hash(bytes).to_hex().to_string(),
        };
        reapi::Digest { hash, size_bytes: i64::try_from(bytes.len()).unwrap() }
    }
}

/// The blobs of an engine.
pub(super) struct Blobs {
    dir: PathBuf,
    functions: Vec<Function>,
    /// The function of blobs that are named without one.
    unnamed: Function,
}

impl Blobs {
    pub(super) fn new(top: &Path, habits: &Habits) -> Self {
        let dir = top.join("blobs");
        for name in ["sha256", "blake3", "inputs", "new"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let functions = habits.functions.clone();
        let unnamed = if habits.announces_default { functions[0] } else { Function::Sha256 };
        Self { dir, functions, unnamed }
    }

    /// Returns the digest function of a request: the default one if it names none.
    pub(super) fn function(&self, named: i32) -> Result<Function, Status> {
        if named == Value::Unknown as i32 {
            return Ok(self.functions[0]);
        }
        let found = self.functions.iter().find(|function| function.value() as i32 == named);
        found.copied().ok_or_else(|| Status::invalid_argument(format!("unsupported digest function {named}")))
    }

    /// Parses the part of a resource's name from `blobs` on.
    pub(super) fn resource(&self, name: &str) -> Result<(Function, reapi::Digest), Status> {
        let wrong = || Status::invalid_argument(format!("no blob is named `{name}`"));
        let parts: Vec<&str> = name.split('/').skip_while(|part| *part != "blobs").skip(1).collect();
        let (function, hash, size) = match parts[..] {
            ["blake3", hash, size] => (self.function(Value::Blake3 as i32)?, hash, size),
            [hash, size] => (self.unnamed, hash, size),
            _ => return Err(wrong()),
        };
        let size_bytes = size.parse().map_err(|_| wrong())?;
        Ok((function, reapi::Digest { hash: hash.to_owned(), size_bytes }))
    }

    fn path(&self, function: Function, digest: &reapi::Digest) -> Result<PathBuf, Status> {
        let is_hash = digest.hash.len() == 64 && digest.hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash {
            return Err(Status::invalid_argument(format!("`{}` is no hash", digest.hash)));
        }
        Ok(self.dir.join(function.dir()).join(&digest.hash))
    }

    pub(super) fn has(&self, function: Function, digest: &reapi::Digest) -> Result<bool, Status> {
        Ok(self.path(function, digest)?.exists())
    }

    pub(super) fn read(&self, function: Function, digest: &reapi::Digest) -> Result<Vec<u8>, Status> {
        let missing = |_| Status::not_found(format!("{}/{} not found", digest.hash, digest.size_bytes));
        fs::read(self.path(function, digest)?).map_err(missing)
    }

    pub(super) fn write(&self, function: Function, digest: &reapi::Digest, bytes: &[u8]) -> Result<(), Status> {
        let found = function.digest(bytes);
        if found != *digest {
            return Err(Status::invalid_argument(format!("{} bytes have the hash {}", bytes.len(), found.hash)));
        }
        let aside = self.dir.join("new").join(Uuid::new_v4().to_string());
        fs::write(&aside, bytes).unwrap();
        fs::rename(aside, self.path(function, digest)?).unwrap();
        Ok(())
    }

    /// Stores bytes, and returns their digest.
    pub(super) fn put(&self, function: Function, bytes: &[u8]) -> reapi::Digest {
        let digest = function.digest(bytes);
        self.write(function, &digest, bytes).unwrap();
        digest
    }

    /// Decodes a message that an Action needs.
    pub(super) fn message<M: Message + Default>(
        &self,
        function: Function,
        digest: Option<&reapi::Digest>,
    ) -> Result<M, Status> {
        let digest = digest.ok_or_else(|| Status::invalid_argument("a digest is missing"))?;
        let bytes = self.read(function, digest).map_err(|_| missing(digest))?;
        M::decode(&bytes[..]).map_err(|error| Status::invalid_argument(error.to_string()))
    }

    /// Returns a file with the content of a blob and this mode, which Actions share.
    pub(super) fn shared(&self, function: Function, digest: &reapi::Digest, mode: u32) -> Result<PathBuf, Status> {
        let path = self.dir.join("inputs").join(format!("{}-{}-{mode:o}", function.dir(), digest.hash));
        if !path.exists() {
            let aside = self.dir.join("new").join(Uuid::new_v4().to_string());
            fs::copy(self.path(function, digest)?, &aside).map_err(|_| missing(digest))?;
            fs::set_permissions(&aside, fs::Permissions::from_mode(mode)).unwrap();
            // Another Action may have made it meanwhile. It is not replaced: a file that loses its only name
            // between the two halves of `link` cannot be linked.
            match fs::hard_link(&aside, &path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("{}: {error}", path.display()),
                _ => fs::remove_file(aside).unwrap(),
            }
        }
        Ok(path)
    }

    /// Checks that the shared files have the content and the mode with which they were created.
    #[track_caller]
    pub(super) fn assert_intact(&self) {
        for entry in fs::read_dir(self.dir.join("inputs")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let [function, hash, mode] = name.split('-').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let function = if function == "sha256" { Function::Sha256 } else { Function::Blake3 };
            assert_eq!(function.digest(&fs::read(&path).unwrap()).hash, hash);
            assert_eq!(format!("{:o}", fs::metadata(&path).unwrap().permissions().mode() & 0o7777), mode, "{name}");
        }
    }
}

/// `google.rpc.PreconditionFailure`, which the protocol crate lacks.
#[derive(Clone, PartialEq, Message)]
struct PreconditionFailure {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, Message)]
struct Violation {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    subject: String,
}

/// Returns the status for an Action that needs a missing blob.
fn missing(digest: &reapi::Digest) -> Status {
    let subject = format!("blobs/{}/{}", digest.hash, digest.size_bytes);
    let failure = PreconditionFailure { violations: vec![Violation { kind: "MISSING".into(), subject }] };
    let any = bazel_remote_apis::google::protobuf::Any {
        type_url: "type.googleapis.com/google.rpc.PreconditionFailure".into(),
        value: failure.encode_to_vec(),
    };
    let message = "blobs are missing".to_owned();
    let status = rpc::Status { code: Code::FailedPrecondition as i32, message: message.clone(), details: vec![any] };
    Status::with_details(Code::FailedPrecondition, message, status.encode_to_vec().into())
}
