//! The supplementary groups of a step's root.

use rustix::{fs::Gid, io::Errno, thread::set_thread_groups};

use super::{SetupError, error::ResultExt, small_file};

/// The maximum size of the group file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The maximum number of groups that the kernel accepts.
const MAX_GROUPS: usize = 65_536;

/// Joins root's own group and the groups in which the step's `/etc/group` lists root, as container engines
/// do. The step's files must be the caller's root.
pub(crate) fn join_those_of_root() -> Result<(), SetupError> {
    let own = [Gid::ROOT];
    let groups = match small_file::read(c"/etc/group", MAX_BYTES) {
        Ok(file) => of_root(&file),
        // An image may have no such file, or something else at its path.
        Err(_) => own.to_vec(),
    };
    match set_thread_groups(&groups) {
        // One of the groups has no id in the user namespace.
        Err(Errno::INVAL) => set_thread_groups(&own),
        joined => joined,
    }
    .doing(|| "join root's groups".into())
}

/// Returns root's groups according to a file of lines `name:password:id:members`.
fn of_root(file: &[u8]) -> Vec<Gid> {
    let listed = file.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (id, members) = (fields.nth(2)?, fields.next()?);
        if !members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == b"root") {
            return None;
        }
        let id: u32 = std::str::from_utf8(id).ok()?.trim().parse().ok()?;
        // All ones stands for no group.
        (id != u32::MAX).then(|| Gid::from_raw(id))
    });
    let mut groups = vec![Gid::ROOT];
    groups.extend(listed.filter(|group| !group.is_root()).take(MAX_GROUPS - 1));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_in_its_own_group_and_in_those_that_list_it() {
        let file =
            b"root:x:0:root\nbin:x:1:root,bin,daemon\nuucp:x:14:uucp,root\nrooters:x:15:rootless\n\nx\na:b:c:root\n\
            last:x:27:root";
        let groups: Vec<u32> = of_root(file).into_iter().map(Gid::as_raw).collect();
        assert_eq!(groups, [0, 1, 14, 27]);
        assert_eq!(of_root(b"\xff\x00:::root"), [Gid::ROOT]);
        assert_eq!(of_root(b"none:x:4294967295:root\n"), [Gid::ROOT]);
    }
}
