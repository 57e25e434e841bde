//! Compiles rules for system calls to a filter program.
//!
//! A filter is a binary search over the system call numbers. Each time a filter is installed, which is once
//! per step, the kernel converts it, and tries it on every number to learn which calls need no filter. For a
//! chain of comparisons, which a rule list compiles to, this takes about five times as long: 675 us for 330
//! comparisons, 136 us for a search (best of 30, busy machine).

use libc::sock_filter;

use super::{FIRST_UNKNOWN, arch};

pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const JUMP_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;

pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
/// Returns the offset of an argument's low half (little endian, as all supported architectures are).
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// The outcome of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    /// Fails with this error number; 0 is success without effect.
    Errno(u16),
    /// Denied if this argument has any of these bits.
    DenyBits {
        argument: u32,
        bits: u32,
    },
    /// Denied if the first argument is one of these values.
    DenyValues(&'static [u32]),
    /// Allowed if the first argument is one of these values.
    AllowValues(&'static [u32]),
    /// Reported to the filter's listener.
    Notify,
    /// Reported if the first argument is this value.
    NotifyValue(u32),
}

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Makes a whole filter: by architecture, then by number. `foreign` is the verdict for architectures without
/// a list.
pub(super) fn program(native: Vec<(u32, Verdict)>, compat: Vec<(u32, Verdict)>, foreign: Verdict) -> Vec<sock_filter> {
    let mut code = vec![instruction(LOAD, ARCHITECTURE)];
    let mut arch = |audit: u32, rules: Vec<(u32, Verdict)>| {
        let mut body = vec![instruction(LOAD, NUMBER)];
        body.extend(search(&ranges(rules)));
        code.push(branch(JUMP_EQUAL, audit, 1, 0));
        code.push(instruction(JUMP, body.len() as u32));
        code.extend(body);
    };
    arch(arch::NATIVE, native);
    if let Some(audit) = arch::COMPAT {
        arch(audit, compat);
    }
    code.extend(leaf(foreign));
    code
}

/// Converts the rules to ranges that cover every number. Each range starts at its number and ends where the
/// next one starts. The last range, from [`FIRST_UNKNOWN`] on, also covers the numbers of the x32 ABI.
fn ranges(mut rules: Vec<(u32, Verdict)>) -> Vec<(u32, Verdict)> {
    rules.sort_by_key(|&(number, _)| number);
    let mut ranges = vec![(0, Verdict::Allow)];
    for (number, verdict) in rules {
        push(&mut ranges, number, verdict);
        if number != FIRST_UNKNOWN {
            push(&mut ranges, number + 1, Verdict::Allow);
        }
    }
    ranges
}

fn push(ranges: &mut Vec<(u32, Verdict)>, start: u32, verdict: Verdict) {
    match ranges.last_mut() {
        Some(last) if last.0 == start => last.1 = verdict,
        Some(last) if last.1 == verdict => {}
        _ => ranges.push((start, verdict)),
    }
}

/// Makes a binary search for the range of the loaded number.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    let middle = ranges.len() / 2;
    if middle == 0 {
        return ranges.first().map(|&(_, verdict)| leaf(verdict)).unwrap_or_default();
    }
    let (low, high) = (search(&ranges[..middle]), search(&ranges[middle..]));
    let start = ranges[middle].0;
    let mut code = match u8::try_from(low.len()) {
        Ok(skip) => vec![branch(JUMP_GREATER_OR_EQUAL, start, skip, 0)],
        // Conditional jumps reach at most 255 instructions.
        Err(_) => vec![branch(JUMP_GREATER_OR_EQUAL, start, 0, 1), instruction(JUMP, low.len() as u32)],
    };
    code.extend(low);
    code.extend(high);
    code
}

fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    let allow = instruction(RETURN, libc::SECCOMP_RET_ALLOW);
    let errno = |number: u16| instruction(RETURN, libc::SECCOMP_RET_ERRNO | u32::from(number));
    let perm = errno(libc::EPERM as u16);
    let notify = instruction(RETURN, libc::SECCOMP_RET_USER_NOTIF);
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Errno(number) => vec![errno(number)],
        Verdict::DenyBits { argument: index, bits } => {
            vec![instruction(LOAD, argument(index)), branch(JUMP_ANY_BIT, bits, 0, 1), perm, allow]
        }
        Verdict::DenyValues(values) => {
            let mut code = vec![instruction(LOAD, argument(0))];
            code.extend(values.iter().flat_map(|&value| [branch(JUMP_EQUAL, value, 0, 1), perm]));
            code.push(allow);
            code
        }
        Verdict::Notify => vec![notify],
        Verdict::NotifyValue(value) => {
            vec![instruction(LOAD, argument(0)), branch(JUMP_EQUAL, value, 0, 1), notify, allow]
        }
        Verdict::AllowValues(values) => {
            let mut code = vec![instruction(LOAD, argument(0))];
            code.extend(values.iter().flat_map(|&value| [branch(JUMP_EQUAL, value, 0, 1), allow]));
            code.push(perm);
            code
        }
    }
}
