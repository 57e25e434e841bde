//! Whether this kernel, and what runs around this process, let steps be traced.

use rustix::io::Errno;

use super::super::{notify, seccomp};

/// Checks whether steps of this process can be traced, by doing it: a thread that does nothing else gets a
/// listener. Takes some 100 µs.
///
/// # Errors
/// Returns the reason if they cannot.
pub fn check_support() -> Result<(), String> {
    // Then no process may read the memory of another one, not even with all capabilities.
    if std::fs::read("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.starts_with(b"3")) {
        return Err("this machine allows no tracing at all (kernel.yama.ptrace_scope = 3)".into());
    }
    let tried = std::thread::Builder::new().name("hm-trace-check".into()).spawn(|| {
        // Needs no capability then. The attribute is the thread's own.
        rustix::thread::set_no_new_privs(true)?;
        notify::install_listener(&seccomp::traced()).map(drop)
    });
    let tried = tried.map_err(|error| format!("a thread could not be started: {error}"))?;
    match tried.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(reason(error)),
        Err(_) => Err("the check panicked".into()),
    }
}

fn reason(error: Errno) -> String {
    match error {
        Errno::INVAL | Errno::NOSYS => {
            format!("that takes Linux 5.19 or later with seccomp user notification ({error})")
        }
        Errno::BUSY => "this process runs under another seccomp listener".into(),
        _ => format!("the kernel refused a seccomp listener: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_listener_is_refused_and_a_check_leaves_none_behind() {
        // Twice: the first one is gone with its thread.
        assert_eq!(check_support(), check_support());
        if check_support().is_err() {
            return;
        }
        let nested = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            // Its threads have the same filters.
            let listener = notify::install_listener(&[allow_all()]).unwrap();
            let checked = check_support();
            drop(listener);
            checked
        });
        let refused = nested.join().unwrap().unwrap_err();
        assert!(refused.contains("another seccomp listener"), "{refused}");
    }

    fn allow_all() -> libc::sock_filter {
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }
    }
}
