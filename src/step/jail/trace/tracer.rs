//! The tracer: takes the step's calls one by one, and records what each reads.
//!
//! Over 500 lines because of that: what each kind of call reads is read together.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{fs::FileType, io::Errno, time::ClockId};

use super::{
    super::{
        SetupError,
        error::ResultExt,
        notify::{self, Notification},
        spec::{JailSpec, TraceSpec},
    },
    audit,
    caller::{self, CWD_FD, Caller, Place},
    calls::{Call, Follow, Op, Table},
    format::{Kinds, Reason},
    open_flags::Open,
    own_filter::has_own_tracer,
    program::{Needs, examine},
    records::Records,
    resolve::{Found, Is, Uppers, Wanted, is_empty_dir, open_file, removed, resolve},
};

/// The most threads that are looked at, for each call, whether their changes of paths are done. Until all
/// are, nothing is remembered.
const MAX_PENDING: usize = 64;
/// How many files are examined for one program: the kernel takes five interpreters one after the other, and
/// the last one may have a loader.
const MAX_INTERPRETERS: u32 = 8;

/// This architecture, as auditing names it.
const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xC000_003E } else { 0xC000_00B7 };

/// What became of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::jail) enum Answered {
    /// The call is executed.
    Yes,
    /// A program of the step needs what a traced step cannot have: the step must run untraced.
    Untraceable,
    /// No process is left that could make a call.
    Ended,
    /// The kernel hands out no more calls: the step cannot go on.
    Broken(Errno),
}

/// The tracer of a step.
#[derive(Debug)]
pub(in crate::jail) struct Tracer {
    listener: Option<OwnedFd>,
    /// The file that the trace is written to.
    file: OwnedFd,
    uppers: Uppers,
    proc: Option<OwnedFd>,
    table: Table,
    records: Records,
    /// Threads in calls that may change where paths lead, with the calls' numbers.
    pending: Vec<(u32, i32)>,
    /// Whether a process may have another root.
    has_roots: bool,
    /// The processor time of this process when the tracer started.
    started: Duration,
}

/// The step has a listener of its own, or a tracer by filter.
struct NeedsOwnTracer;

impl Tracer {
    /// Prepares a tracer, while the host's paths can be reached.
    pub(in crate::jail) fn prepare(spec: &JailSpec, trace: &TraceSpec, file: OwnedFd) -> Result<Self, SetupError> {
        Ok(Self {
            listener: None,
            file,
            uppers: Uppers::open(spec, trace)?,
            proc: None,
            table: Table::new(),
            records: Records::default(),
            pending: Vec::new(),
            has_roots: false,
            started: Duration::ZERO,
        })
    }

    /// Starts to trace the processes that have the filter of `listener`. The step's root must be this
    /// process'. Without a listener, the kernel cannot trace.
    pub(in crate::jail) fn start(&mut self, listener: Option<OwnedFd>) -> Result<(), SetupError> {
        self.started = processor_time();
        self.proc = Some(caller::open_proc().doing(|| "open /proc".into())?);
        self.uppers.find_caches().doing(|| "find the step's cache directories".into())?;
        match listener {
            Some(listener) => {
                // Older kernels are slower without it.
                let _ = notify::wake_at_once(&listener);
                self.listener = Some(listener);
            }
            None => self.records.reason(Reason::Kernel),
        }
        Ok(())
    }

    /// Returns the descriptor that becomes readable with a call.
    pub(in crate::jail) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Examines one waiting call, and has it executed.
    pub(in crate::jail) fn answer(&mut self) -> Answered {
        let Some(listener) = &self.listener else { return Answered::Ended };
        let call = match notify::receive(listener) {
            Ok(call) => call,
            // Its process was killed.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => return Answered::Yes,
            Err(error) => return Answered::Broken(error),
        };
        if let Err(NeedsOwnTracer) = self.examine(&call) {
            return Answered::Untraceable;
        }
        if let Some(listener) = &self.listener {
            // Fails if the process was killed meanwhile.
            let _ = notify::resume(listener, &call);
        }
        Answered::Yes
    }

    /// Stops to listen: no process of the step is left.
    pub(in crate::jail) fn stop(&mut self) {
        self.listener = None;
    }

    /// Audits what the step wrote, and writes the processor time that tracing took, and the trace. No process
    /// of the step may be left.
    pub(in crate::jail) fn finish(mut self) -> Result<(), SetupError> {
        audit::audit(&self.uppers, &mut self.records);
        let bytes = self.records.into_trace().encode().doing(|| "encode the trace".into())?;
        let spent = processor_time().saturating_sub(self.started).as_micros();
        let mut file = File::from(self.file);
        let mut write = |bytes: &[u8]| file.write_all(bytes).doing(|| "write the trace".into());
        write(&u64::try_from(spent).unwrap_or(u64::MAX).to_le_bytes())?;
        write(&bytes)
    }

    fn unexamined(&mut self, call: &str, error: Errno) {
        self.records.reason(Reason::Unexamined { call: call.to_owned(), error: error.to_string() });
    }

    fn examine(&mut self, it: &Notification) -> Result<(), NeedsOwnTracer> {
        if it.architecture != NATIVE {
            self.records.reason(Reason::ForeignCalls);
            return Ok(());
        }
        let Some(call) = self.table.get(it.number) else { return Ok(()) };
        // A thread that makes another call has returned from the last one.
        self.pending.retain(|(thread, _)| *thread != it.thread);
        let Some(proc) = self.proc.take() else { return Ok(()) };
        let caller = Caller { proc: &proc, call: it };
        let done = self.examine_call(call, &caller);
        self.proc = Some(proc);
        match done {
            Ok(done) => return done.map_or(Ok(()), |NeedsOwnTracer| Err(NeedsOwnTracer)),
            // If the caller was killed, it was another process' memory, or none.
            Err(_) if !self.listener.as_ref().is_some_and(|listener| notify::is_waiting(listener, it)) => {}
            Err(error) => self.unexamined(call.name, error),
        }
        Ok(())
    }

    fn examine_call(&mut self, call: &'static Call, caller: &Caller<'_>) -> Result<Option<NeedsOwnTracer>, Errno> {
        let arguments = &caller.call.arguments;
        match call.op {
            Op::Filter { listens } => {
                let own = has_own_tracer(caller, listens)?;
                return Ok(own.then_some(NeedsOwnTracer));
            }
            Op::List => self.list(call, caller)?,
            Op::Connect | Op::Bind => self.connect(call, caller)?,
            _ => {
                let dir = call.dir.map_or(CWD_FD, |index| descriptor(arguments[index]));
                let address = arguments[call.path];
                // `futimens` and the like: the descriptor's file was opened before.
                if address == 0 && call.op == Op::Change {
                    return Ok(None);
                }
                let Some(path) = caller.path(address)? else { return Ok(None) };
                if path.is_empty() {
                    self.descriptor_itself(call, caller, dir)?;
                } else {
                    self.path(call, caller, dir, &path)?;
                }
            }
        }
        Ok(None)
    }

    /// Examines a call with an empty path, which may mean the descriptor's file.
    fn descriptor_itself(&mut self, call: &'static Call, caller: &Caller<'_>, fd: i32) -> Result<(), Errno> {
        // The descriptor was opened, which counts as metadata.
        if call.op == Op::Look || (fd == CWD_FD && call.op != Op::Change) {
            return Ok(());
        }
        let path = match caller.place(fd)? {
            Place::At(path) => path,
            // What was removed has no path; its content can still be carried elsewhere, or executed.
            Place::Removed(path) => {
                let found = removed(&mut self.records, &path, caller.link(fd));
                let root = self.root(caller)?;
                return self.removed_itself(call, caller, &root, &found);
            }
            Place::None => return Ok(()),
        };
        self.named(call, caller, Named { dir: b"", path: &path, follow: false })
    }

    /// Examines a call with a descriptor whose file was removed.
    fn removed_itself(
        &mut self,
        call: &'static Call,
        caller: &Caller<'_>,
        root: &[u8],
        found: &Found,
    ) -> Result<(), Errno> {
        match call.op {
            Op::Execute => {
                self.execute(call, caller, root, found);
            }
            Op::Link { dir, path } => self.second_path(call, caller, (root, dir, path), (found, false, false))?,
            _ => {}
        }
        Ok(())
    }

    fn path(&mut self, call: &'static Call, caller: &Caller<'_>, dir: i32, path: &[u8]) -> Result<(), Errno> {
        let follow = follows(call.follow, &caller.call.arguments);
        // `openat2` can take the directory for the root.
        let needs_dir = !path.starts_with(b"/") || matches!(call.op, Op::OpenHow { .. });
        // There is no such descriptor: the call fails.
        let Some(dir) = self.base_dir(call, caller, dir, (path, needs_dir))? else { return Ok(()) };
        self.named(call, caller, Named { dir: &dir, path, follow })
    }

    /// Returns the directory that a path starts in. Returns `None` if the call will find nothing.
    fn base_dir(
        &mut self,
        call: &Call,
        caller: &Caller<'_>,
        dir: i32,
        (path, needs_dir): (&[u8], bool),
    ) -> Result<Option<Vec<u8>>, Errno> {
        if !needs_dir {
            return Ok(Some(Vec::new()));
        }
        match caller.place(dir)? {
            Place::At(dir) => Ok(Some(dir)),
            Place::None => Ok(path.starts_with(b"/").then(Vec::new)),
            Place::Removed(_) => {
                // Nothing is in it, but it still has a directory above it.
                if path.split(|byte| *byte == b'/').any(|name| name == b"..") {
                    self.unexamined(call.name, Errno::NOENT);
                }
                Ok(path.starts_with(b"/").then(Vec::new))
            }
        }
    }

    fn named(&mut self, call: &'static Call, caller: &Caller<'_>, named: Named<'_>) -> Result<(), Errno> {
        let arguments = caller.call.arguments;
        let open = match call.op {
            Op::Open { flags } => Some(Open::of(arguments[flags])),
            Op::Create => Some(Open::of((libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY) as u64)),
            Op::OpenHow { how } => {
                // flags, mode, resolve
                let how = caller.bytes(arguments[how], 24)?;
                let word =
                    |at: usize| how.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
                let Some(flags) = word(0) else { return Ok(()) };
                const IN_ROOT: u64 = 0x10;
                let mut open = Open::of(flags);
                open.in_root = word(16).is_some_and(|resolve| resolve & IN_ROOT != 0);
                Some(open)
            }
            _ => None,
        };
        let follow = open.as_ref().map_or(named.follow, |open| named.follow && open.follow);
        let in_root = open.as_ref().is_some_and(|open| open.in_root);
        let root = if in_root { named.dir.to_vec() } else { self.root(caller)? };
        let root = if root == b"/" { Vec::new() } else { root };
        let named = Named { follow, ..named };
        match open {
            Some(open) => self.open(call, caller, &root, named, &open),
            None => self.other(call, caller, &root, named)?,
        }
        Ok(())
    }

    /// Returns the caller's root, without a slash at the end.
    fn root(&self, caller: &Caller<'_>) -> Result<Vec<u8>, Errno> {
        if !self.has_roots {
            return Ok(Vec::new());
        }
        caller.root().map(|root| if root == b"/" { Vec::new() } else { root })
    }

    /// Resolves a path, and records what that reads.
    fn find(&mut self, call: &Call, caller: &Caller<'_>, root: &[u8], named: Named<'_>) -> Found {
        let may_remember = self.is_settled(caller);
        let Named { dir, path, follow } = named;
        let wanted = Wanted { root, dir, path, follow, may_remember, call: call.name };
        resolve(&self.uppers, &mut self.records, caller, wanted)
    }

    fn open(&mut self, call: &Call, caller: &Caller<'_>, root: &[u8], named: Named<'_>, open: &Open) {
        let key = (!open.writes)
            .then(|| key(&[&[u8::from(open.is_path), u8::from(named.follow)], root, named.dir, named.path]));
        if self.was_done(caller, key.as_deref()) {
            return;
        }
        let found = self.find(call, caller, root, named);
        match found.is {
            Is::Absent if open.creates => self.records.add(&found.path, Kinds::WRITTEN),
            Is::There(file_type) if !found.is_own => {
                let mut kinds = Kinds::METADATA;
                match file_type {
                    FileType::Directory => {}
                    FileType::Symlink => kinds = kinds.and(Kinds::LINK),
                    _ if open.is_path || open.truncates => {}
                    _ => kinds = kinds.and(Kinds::CONTENT),
                }
                if open.writes && file_type != FileType::Directory {
                    kinds = kinds.and(Kinds::WRITTEN);
                }
                self.records.add(&found.path, kinds);
            }
            Is::There(_) | Is::Absent | Is::NoInput => {}
        }
        if !found.by_caller {
            self.done(caller, key);
        }
    }

    fn other(&mut self, call: &Call, caller: &Caller<'_>, root: &[u8], named: Named<'_>) -> Result<(), Errno> {
        let kind = match call.op {
            Op::Look => Some(2),
            Op::ReadLink => Some(3),
            Op::Execute => Some(4),
            _ => None,
        };
        let key = kind.map(|kind| key(&[&[kind, u8::from(named.follow)], root, named.dir, named.path]));
        if self.was_done(caller, key.as_deref()) {
            return Ok(());
        }
        if call.op == Op::ChangeRoot {
            self.has_roots = true;
        }
        let found = self.find(call, caller, root, named);
        let is_known = match call.op {
            Op::Execute => self.execute(call, caller, root, &found),
            Op::Rename { dir, path, flags } => {
                let exchanges = flags.is_some_and(|index| caller.call.arguments[index] & 2 != 0);
                self.carry(&found);
                self.written(&found);
                self.second_path(call, caller, (root, dir, path), (&found, true, exchanges))?;
                false
            }
            Op::Link { dir, path } => {
                self.carry(&found);
                self.second_path(call, caller, (root, dir, path), (&found, false, false))?;
                false
            }
            _ => {
                self.single(call, caller, &found);
                true
            }
        };
        if is_known && !found.by_caller {
            self.done(caller, key);
        }
        Ok(())
    }

    /// Records a call that names one path.
    fn single(&mut self, call: &Call, caller: &Caller<'_>, found: &Found) {
        match call.op {
            Op::Look | Op::ChangeRoot => self.look(found, Kinds::default()),
            Op::ReadLink => {
                let is_link = found.file_type() == Some(FileType::Symlink);
                self.look(found, if is_link { Kinds::LINK } else { Kinds::default() });
            }
            Op::Change => {
                self.carry(found);
                self.written(found);
            }
            Op::MakeDir | Op::MakeLink | Op::MakeNode => {
                self.look(found, Kinds::default());
                if found.is == Is::Absent {
                    self.written(found);
                    if call.op == Op::MakeDir && found.is_own {
                        self.records.own_dir(&found.path);
                    }
                }
                // What is there now may be removed before the call is executed, by another thread: then the
                // link leads elsewhere. A new directory does not.
                if call.op == Op::MakeLink || (call.op == Op::MakeDir && found.is == Is::Absent) {
                    self.paths_change(caller);
                }
            }
            Op::Remove | Op::RemoveDir => {
                // Whether a directory can be removed depends on what is in it.
                let is_dir = found.file_type() == Some(FileType::Directory) && call.op == Op::RemoveDir;
                self.look(found, if is_dir { Kinds::LISTING } else { Kinds::default() });
                self.written(found);
            }
            Op::Open { .. }
            | Op::Create
            | Op::OpenHow { .. }
            | Op::Execute
            | Op::List
            | Op::Rename { .. }
            | Op::Link { .. }
            | Op::Connect
            | Op::Bind
            | Op::Filter { .. } => {}
        }
    }

    /// Records the metadata of what is there, and `more`.
    fn look(&mut self, found: &Found, more: Kinds) {
        if let Is::There(_) = found.is
            && !found.is_own
        {
            self.records.add(&found.path, Kinds::METADATA.and(more));
        }
    }

    /// Records that what is there is carried into the step's layer.
    fn carry(&mut self, found: &Found) {
        let content = match found.file_type() {
            Some(FileType::Directory) => Kinds::default(),
            Some(FileType::Symlink) => Kinds::LINK,
            _ => Kinds::CONTENT,
        };
        self.look(found, content);
    }

    fn written(&mut self, found: &Found) {
        if found.is != Is::NoInput {
            self.records.add(&found.path, Kinds::WRITTEN);
        }
    }

    /// Records the second path of a call that moves or links the first.
    fn second_path(
        &mut self,
        call: &Call,
        caller: &Caller<'_>,
        (root, dir, path): (&[u8], Option<usize>, usize),
        (source, moves, exchanges): (&Found, bool, bool),
    ) -> Result<(), Errno> {
        let arguments = &caller.call.arguments;
        let Some(path) = caller.path(arguments[path])? else { return Ok(()) };
        let dir = dir.map_or(CWD_FD, |index| descriptor(arguments[index]));
        let Some(dir) = self.base_dir(call, caller, dir, (&path, !path.starts_with(b"/")))? else { return Ok(()) };
        let to = self.find(call, caller, root, Named { dir: &dir, path: &path, follow: false });
        if exchanges {
            self.carry(&to);
        } else {
            // A directory is replaced only if it is empty.
            let is_dir = to.file_type() == Some(FileType::Directory);
            self.look(&to, if is_dir { Kinds::LISTING } else { Kinds::default() });
        }
        self.written(&to);
        // By another thread, something else may be there when the call is executed.
        let leads_elsewhere =
            |it: &Found| matches!(it.file_type(), Some(FileType::Directory | FileType::Symlink) | None);
        // The call may fail, so what is in the target now must not be taken for the step's own.
        let takes_all = to.is == Is::Absent || to.file_type() == Some(FileType::Directory) && is_empty_dir(&to.path);
        if moves && source.file_type() == Some(FileType::Directory) && takes_all {
            self.records.own_dir(&to.path);
        }
        if leads_elsewhere(source) || (exchanges && leads_elsewhere(&to)) {
            self.paths_change(caller);
        }
        Ok(())
    }

    /// Records a program, and what the kernel opens to run it. Returns whether the same call can be
    /// remembered.
    fn execute(&mut self, call: &Call, caller: &Caller<'_>, root: &[u8], found: &Found) -> bool {
        let mut is_layers_own = true;
        let mut next = None;
        for _ in 0..MAX_INTERPRETERS {
            let program = next.as_ref().unwrap_or(found);
            // The step may write it again, with another interpreter.
            is_layers_own &= !program.is_own && !program.by_caller;
            let file = match self.program(caller, program) {
                Ok(Some(file)) => file,
                Ok(None) => break,
                Err(error) => {
                    self.unexamined(call.name, error);
                    break;
                }
            };
            let path = &program.path;
            let program = examine(&file);
            if program.is_foreign {
                self.records.reason(Reason::ForeignCalls);
            }
            if program.is_unknown {
                self.records.reason(Reason::ForeignProgram(path.clone()));
            }
            let (Needs::Interpreter(name) | Needs::Loader(name)) = program.needs else { break };
            // Starts in the caller's working directory, which another call may not have.
            is_layers_own &= name.starts_with(b"/");
            let start = self.base_dir(call, caller, CWD_FD, (&name, !name.starts_with(b"/")));
            let Ok(Some(dir)) = start else { break };
            let found = self.find(call, caller, root, Named { dir: &dir, path: &name, follow: true });
            next = Some(found);
        }
        is_layers_own
    }

    /// Records a program, and opens it. Returns `None` if it cannot be executed.
    fn program(&mut self, caller: &Caller<'_>, found: &Found) -> Result<Option<OwnedFd>, Errno> {
        if let Some(link) = &found.removed {
            return caller.open(link);
        }
        if found.is != Is::There(FileType::RegularFile) {
            return Ok(None);
        }
        if !found.is_own {
            self.records.add(&found.path, Kinds::CONTENT.and(Kinds::METADATA));
        }
        open_file(&found.path)
    }

    fn list(&mut self, call: &Call, caller: &Caller<'_>) -> Result<(), Errno> {
        let fd = descriptor(caller.call.arguments[0]);
        let Some(path) = caller.place(fd)?.path() else { return Ok(()) };
        let key = key(&[&[5], &path]);
        if self.was_done(caller, Some(&key)) {
            return Ok(());
        }
        let found = self.find(call, caller, b"", Named { dir: b"", path: &path, follow: false });
        if found.file_type() == Some(FileType::Directory) {
            self.look(&found, Kinds::LISTING);
        }
        if !found.by_caller {
            self.done(caller, Some(key));
        }
        Ok(())
    }

    /// Examines the address of a socket: it may be a path.
    fn connect(&mut self, call: &Call, caller: &Caller<'_>) -> Result<(), Errno> {
        let length = usize::try_from(caller.call.arguments[2]).unwrap_or(0).min(110);
        let address = caller.bytes(caller.call.arguments[1], length)?;
        let Some((family, path)) = address.split_first_chunk::<2>() else { return Ok(()) };
        if u16::from_le_bytes(*family) != libc::AF_UNIX as u16 || path.first().is_none_or(|first| *first == 0) {
            return Ok(());
        }
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        let Some(dir) = self.base_dir(call, caller, CWD_FD, (path, !path.starts_with(b"/")))? else { return Ok(()) };
        let root = self.root(caller)?;
        let follow = call.op == Op::Connect;
        let found = self.find(call, caller, &root, Named { dir: &dir, path, follow });
        self.look(&found, Kinds::default());
        if call.op == Op::Bind {
            self.written(&found);
        }
        Ok(())
    }

    /// Notes that the call of this thread may change where paths lead. It is unknown when it is executed.
    fn paths_change(&mut self, caller: &Caller<'_>) {
        self.records.forget();
        self.pending.push((caller.call.thread, caller.call.number));
    }

    /// Returns whether no call is under way that may change where paths lead.
    fn is_settled(&mut self, caller: &Caller<'_>) -> bool {
        let mut looks = MAX_PENDING;
        self.pending.retain(|(thread, number)| {
            if looks == 0 {
                return true;
            }
            looks -= 1;
            !caller::has_returned(caller.proc, *thread, *number)
        });
        self.pending.is_empty()
    }

    fn was_done(&mut self, caller: &Caller<'_>, key: Option<&[u8]>) -> bool {
        key.is_some_and(|key| self.records.is_done(key)) && self.is_settled(caller)
    }

    fn done(&mut self, caller: &Caller<'_>, key: Option<Vec<u8>>) {
        if let Some(key) = key
            && self.is_settled(caller)
        {
            self.records.remember(&key);
        }
    }
}

/// A path, as a call names it.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    /// The directory that a relative path starts in.
    dir: &'a [u8],
    path: &'a [u8],
    /// Whether a link at its end is followed.
    follow: bool,
}

fn follows(follow: Follow, arguments: &[u64; 6]) -> bool {
    match follow {
        Follow::Yes => true,
        Follow::No => false,
        Follow::Unless(index, bit) => arguments[index] & bit == 0,
        Follow::If(index, bit) => arguments[index] & bit != 0,
    }
}

/// Returns the descriptor in an argument, of which the kernel takes the low half.
fn descriptor(argument: u64) -> i32 {
    argument as u32 as i32
}

/// Joins the parts that an operation depends on. No part contains a zero byte, except the first, which has
/// a fixed length.
fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for part in parts {
        key.extend_from_slice(part);
        key.push(0);
    }
    key
}

/// Returns the processor time that this process has used.
fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_on_different_paths_have_different_keys() {
        assert_ne!(key(&[&[1, 1], b"", b"/a", b"b"]), key(&[&[1, 1], b"/a", b"", b"b"]));
        assert_ne!(key(&[&[1, 1], b"", b"/a", b"b"]), key(&[&[0, 1], b"", b"/a", b"b"]));
    }
}
