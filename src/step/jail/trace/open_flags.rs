//! The flags of `open`: what of a file they read, and what they change.

/// How a file is opened.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) follow: bool,
    /// Whether it may write, create or truncate.
    pub(super) writes: bool,
    pub(super) creates: bool,
    pub(super) truncates: bool,
    /// Whether the descriptor only names the file.
    pub(super) is_path: bool,
    /// Whether the directory is the root of the path.
    pub(super) in_root: bool,
}

impl Open {
    /// Returns what the flags of `open` ask for.
    pub(super) fn of(flags: u64) -> Self {
        let flags = flags as i32;
        let has = |bits: i32| flags & bits == bits;
        let is_path = has(libc::O_PATH);
        let creates = has(libc::O_CREAT) && !is_path;
        let truncates = has(libc::O_TRUNC) && !is_path;
        Self {
            follow: !(has(libc::O_NOFOLLOW) || creates && has(libc::O_EXCL)),
            writes: !is_path && (flags & libc::O_ACCMODE != libc::O_RDONLY || creates || truncates),
            creates,
            truncates,
            is_path,
            in_root: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_open_decide_what_is_read() {
        let open = |flags: i32| Open::of(flags as u64);
        let it = open(libc::O_RDONLY);
        assert!(it.follow && !it.writes && !it.is_path);
        let it = open(libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC);
        assert!(it.writes && it.creates && it.truncates);
        // `O_TRUNC` writes in every access mode.
        assert!(open(libc::O_RDONLY | libc::O_TRUNC).writes);
        assert!(!open(libc::O_CREAT | libc::O_EXCL).follow);
        assert!(open(libc::O_CREAT).follow);
        // Other flags have no effect on a descriptor that only names.
        let it = open(libc::O_PATH | libc::O_CREAT | libc::O_TRUNC);
        assert!(it.is_path && !it.writes && !it.creates);
    }
}
