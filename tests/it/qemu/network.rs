//! The network of a machine: QEMU's, in a namespace of the step's own.

use std::{
    net::{Ipv4Addr, TcpListener},
    thread,
};

use serde_json::{Value, json};

use super::cleanup::{project, run};
use crate::support::{project::Ended, qemu::Bench};

#[test]
fn a_machine_reaches_neither_this_machine_nor_what_is_not_listed() {
    let Some(bench) = Bench::new() else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(drop));
    let code = format!(
        "import socket\n\
         for to in [('10.0.2.2', {port}), ('192.0.2.1', 443)]:\n\
         \x20   try: socket.create_connection(to, 20); print('reached', to)\n\
         \x20   except OSError as e: print(type(e).__name__)\n\
         try: socket.getaddrinfo('evil.example', 80)\n\
         except OSError as e: print(type(e).__name__)"
    );
    let project = project(&bench, "python3 -c \"$CODE\"");
    let mut ir: Value =
        serde_json::from_str(&std::fs::read_to_string(project.dir.join(".hm/ci.json")).unwrap()).unwrap();
    ir["graph"]["nodes"][0]["env"] = json!({ "CODE": code });
    let mut with_args = |args: Value| {
        ir["graph"]["nodes"][0]["step"]["runner_args"] = args;
        project.file(".hm/ci.json", &ir.to_string());
        Ended::of(run(&project).arg("--trust"))
    };
    let ended = with_args(json!({ "egress": ["a.example"] })).expect(0);
    for seen in ["ConnectionRefusedError", "gaierror"] {
        assert!(ended.stdout.contains(seen), "{seen}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("reached"), "{}", ended.stdout);
    let logs = Ended::of(&mut project.hm(&["logs", "--network", "step"])).expect(0).stdout;
    assert!(logs.contains("192.0.2.1:443  blocked") && logs.contains("dns  evil.example  blocked"), "{logs}");
    let ended = with_args(json!({ "host_ports": [port] })).expect(2);
    assert!(ended.stderr.contains("runner_args.host_ports"), "{}", ended.stderr);
}
