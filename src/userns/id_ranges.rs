//! Subordinate ids: finding those of a user, and mapping them into the zygote's user namespace.

use std::{
    fs,
    process::{Command, Stdio},
};

use rustix::process::{getegid, geteuid};

use crate::programs;

/// A user's subordinate user and group ids. Inside steps the user is 0, and these are 1 and up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdRanges {
    users: Range,
    groups: Range,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

impl IdRanges {
    /// Returns the ranges of the user who runs this process. Fails if the system has none for the user, or
    /// lacks the programs that map them.
    pub(crate) fn of_this_user() -> Result<Self, String> {
        let uid = geteuid().as_raw();
        let name = user_name(uid, &fs::read_to_string("/etc/passwd").unwrap_or_default());
        let range = |file: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            find(&text, name.as_deref(), uid).ok_or_else(|| format!("{file} has no range for this user"))
        };
        let ranges = Self { users: range("/etc/subuid")?, groups: range("/etc/subgid")? };
        for program in ["newuidmap", "newgidmap"] {
            if programs::find(program).is_none() {
                return Err(format!("{program} is not installed"));
            }
        }
        Ok(ranges)
    }

    /// Maps the ids of the user namespace of `pid`. If a program fails, returns its name and its error
    /// output.
    pub(super) fn map(&self, pid: u32) -> Result<(), (&'static str, String)> {
        for (program, own, range) in
            [("newuidmap", geteuid().as_raw(), self.users), ("newgidmap", getegid().as_raw(), self.groups)]
        {
            let numbers = [pid, 0, own, 1, 1, range.first, range.count];
            let found = programs::find(program).ok_or_else(|| (program, "it is not installed".to_owned()))?;
            let output = Command::new(found)
                .current_dir("/")
                .args(numbers.map(|number| number.to_string()))
                .stdin(Stdio::null())
                .output()
                .map_err(|error| (program, error.to_string()))?;
            if !output.status.success() {
                return Err((program, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
        }
        Ok(())
    }
}

fn user_name(uid: u32, passwd: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}

/// Returns the first range with at least one id that belongs to the user, by name or by number.
fn find(text: &str, name: Option<&str>, uid: u32) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let mine = name == Some(owner) || owner.parse() == Ok(uid);
        (mine && count > 0 && fields.next().is_none()).then_some(Range { first, count })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_belongs_to_a_name_or_a_number() {
        let text = "root:1:2\nann:100000:65536\n1001:300000:10\nbroken:x:1\n";
        assert_eq!(find(text, Some("ann"), 7), Some(Range { first: 100_000, count: 65536 }));
        assert_eq!(find(text, None, 1001), Some(Range { first: 300_000, count: 10 }));
        assert_eq!(find(text, Some("bob"), 8), None);
        assert_eq!(find("ann:1:0", Some("ann"), 7), None);
    }

    #[test]
    fn a_user_has_the_name_that_the_system_knows() {
        assert_eq!(user_name(5, "root:x:0:0::/root:/bin/sh\nann:x:5:5::/:/bin/sh\n"), Some("ann".into()));
        assert_eq!(user_name(6, "broken\n"), None);
    }
}
