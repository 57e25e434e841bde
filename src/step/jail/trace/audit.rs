//! The audit: is everything that the step wrote explained by its calls?

use std::{ffi::CStr, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat},
    io::Errno,
};

use super::{
    format::{Kinds, Reason},
    records::Records,
    resolve::{Upper, Uppers},
};

/// What the jail itself makes in a step's layer: mount points.
const MOUNT_POINTS: [&[u8]; 5] = [b"/dev", b"/proc", b"/sys", b"/run", b"/run/secrets"];

/// The deepest directory that is audited. A step that goes deeper has a trace that is not reusable.
const MAX_DEPTH: usize = 512;

/// Walks the upper directories, and records a reason for what no call explains.
pub(super) fn audit(uppers: &Uppers, records: &mut Records) {
    for Upper { on, dir } in uppers.iter() {
        let opened = openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let audited = opened.and_then(|opened| {
            let mut path = on.clone();
            walk(&opened, &mut path, 0, uppers, records)
        });
        if let Err(error) = audited {
            let call = format!("reading what the step wrote to {}/", String::from_utf8_lossy(on));
            records.reason(Reason::Unexamined { call, error: error.to_string() });
        }
    }
}

fn walk(dir: &OwnedFd, path: &mut Vec<u8>, depth: usize, uppers: &Uppers, records: &mut Records) -> Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let is_dir = file_type == FileType::Directory;
        let is_jails = MOUNT_POINTS.contains(&&path[..]) || uppers.leads_to_mount(path);
        let known = records.get(path);
        // All that lies in a new directory belongs to the step.
        if is_dir && known.contains(Kinds::WRITTEN) && records.is_own_below(path) {
            path.truncate(length);
            continue;
        }
        let is_explained = is_jails
            || if is_dir {
                // Copied up because of what is in it.
                known.contains(Kinds::DIRECTORY)
            } else {
                // A second name of a symbolic link copies the link up.
                let copied = if file_type == FileType::Symlink { Kinds::LINK } else { Kinds::CONTENT };
                known.contains(Kinds::WRITTEN) || known.contains(copied)
            };
        if !is_explained {
            records.reason(Reason::Untraced(path.clone()));
        }
        if is_dir {
            if depth >= MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = openat(dir, name, flags, Mode::empty())?;
            walk(&inner, path, depth + 1, uppers, records)?;
        }
        path.truncate(length);
    }
    Ok(())
}
