//! How a service tells that it is ready: a shell beside its command prints a line that only the engine knows.

use crate::runner::{Ready, ServiceArg};

/// Returns the command line of a service whose command is `command`, and which prints `mark` when it is
/// ready.
///
/// The check is no child of the service's command, which may be surprised by children that it did not start:
/// the shell that started it has ended, so it is a child of the first process.
pub(in crate::runner) fn command_line(arg: &ServiceArg, command: Vec<String>, mark: &str) -> Vec<String> {
    let Some(ready) = &arg.ready else { return command };
    let check = match ready {
        Ready::Command(command) => format!("ready() {{ (\n{command}\n) > /dev/null 2>&1 < /dev/null; }}"),
        // State 0A is a listener. Only builtins, because an image may have little else.
        Ready::Port(port) => format!(
            "ready() {{ for table in /proc/net/tcp /proc/net/tcp6; do while read -r _ local _ state _; do \
             case \"$local $state\" in *:{port:04X}' 0A') return 0;; esac; done < $table; done 2> /dev/null; \
             return 1; }}"
        ),
    };
    let script = format!(
        "{check}\n( {{ until ready; do sleep 0.2 2> /dev/null || sleep 1 || exit 1; done; echo '{mark}'; }} & )\n\
         exec \"$@\""
    );
    let shell = ["/bin/sh".to_owned(), "-c".to_owned(), script, "service".to_owned()];
    shell.into_iter().chain(command).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::unix::process::CommandExt,
        process::{Command, Stdio},
    };

    use serde_json::json;

    use super::*;

    /// Returns what a service prints whose command is `cmd`, in a process group of its own.
    fn printed(ready: &serde_json::Value, cmd: &str) -> String {
        let arg: ServiceArg = serde_json::from_value(json!({ "image": "a", "ready": ready })).unwrap();
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), cmd.to_owned()];
        let line = command_line(&arg, command, "ready now");
        let mut program = Command::new(&line[0]);
        let output = program.args(&line[1..]).stdin(Stdio::null()).process_group(0).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_port_is_ready_when_something_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(printed(&json!(port), "sleep 0.5"), "ready now\n");
        drop(listener);
        // The check, which has the pipe open, would wait for ever.
        assert_eq!(printed(&json!(port), "sleep 0.5; echo end; kill -KILL 0"), "end\n");
    }

    #[test]
    fn a_command_is_ready_when_it_succeeds_and_its_output_is_not_the_services() {
        assert_eq!(printed(&json!("echo noise; true # end"), "sleep 0.5; echo \"$0\" end"), "ready now\n/bin/sh end\n");
    }

    #[test]
    fn a_service_without_a_condition_needs_no_shell() {
        let arg: ServiceArg = serde_json::from_value(json!({ "image": "a" })).unwrap();
        assert_eq!(command_line(&arg, vec!["/bin/server".into()], "ready"), ["/bin/server"]);
    }
}
