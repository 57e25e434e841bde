//! The counters of a network namespace, which show what happens within it.

use std::{fs::File, os::fd::OwnedFd, os::unix::fs::FileExt};

/// The most bytes of the file.
const MAX_BYTES: usize = 8 << 10;

/// The file with the counters of a namespace.
#[derive(Debug)]
pub(super) struct Counters(File);

/// Counters of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpCounters {
    /// The attempts to connect that failed.
    failed: u64,
    /// The resets that were sent.
    resets: u64,
}

impl Counters {
    pub(super) fn new(file: OwnedFd) -> Self {
        Self(file.into())
    }

    /// Returns the counters as they are now. Returns `None` if the kernel does not tell.
    pub(super) fn read(&self) -> Option<TcpCounters> {
        let mut buffer = vec![0; MAX_BYTES];
        let length = self.0.read_at(&mut buffer, 0).ok()?;
        parse(str::from_utf8(&buffer[..length]).ok()?)
    }
}

impl TcpCounters {
    /// Returns whether the namespace refused a connection of its own since `before`. In this time, `refused`
    /// attempts to connect were refused from outside.
    pub(super) fn has_refused_within(self, before: Self, refused: u64) -> bool {
        // A refused attempt to connect within the namespace counts as both.
        self.resets > before.resets && self.failed.saturating_sub(before.failed) > refused
    }
}

/// Reads the lines of TCP: one with the names, and one with the numbers.
fn parse(text: &str) -> Option<TcpCounters> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let of = |wanted| {
        let mut both = names.split(' ').zip(numbers.split(' '));
        both.find(|(name, _)| *name == wanted)?.1.parse().ok()
    };
    Some(TcpCounters { failed: of("AttemptFails")?, resets: of("OutRsts")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm AttemptFails EstabResets OutRsts InErrs\n\
                    Tcp: 1 7 0 9 0\nUdp: InDatagrams\nUdp: 3\n";
        assert_eq!(parse(text), Some(TcpCounters { failed: 7, resets: 9 }));
        assert_eq!(parse("Tcp: AttemptFails OutRsts\n"), None);
        assert_eq!(parse(""), None);
        // This process is in some namespace.
        let own = File::open("/proc/self/net/snmp").unwrap();
        assert!(Counters(own).read().is_some());
    }

    #[test]
    fn only_what_the_namespace_itself_refused_counts() {
        let at = |failed, resets| TcpCounters { failed, resets };
        assert!(at(3, 3).has_refused_within(at(2, 2), 0));
        assert!(!at(3, 3).has_refused_within(at(2, 2), 1), "refused from outside");
        assert!(!at(3, 2).has_refused_within(at(2, 2), 0), "given up");
        assert!(!at(2, 3).has_refused_within(at(2, 2), 0), "reset while open");
    }
}
