//! What a trace says about the network.

use serde_json::json;

use super::Traced;
use crate::support::{
    backends::usable_program,
    sandbox::{Ask, Bench},
};

#[tokio::test]
async fn a_private_network_without_packets_is_no_reason() {
    if !usable_program("python3") {
        return;
    }
    let bench = Bench::new();
    // The loopback device is the step's own.
    let cmd = "python3 -c '
import socket
server = socket.create_server((\"127.0.0.1\", 0))
client = socket.create_connection(server.getsockname())
'";
    for round in 0..2 {
        // The second step enters the namespace of the first.
        let it = Traced::run(&bench, Ask::new(cmd).args(json!({ "network": "private" }))).await;
        assert_eq!(it.code, 0, "{}", it.output);
        assert_eq!(it.reasons(), Vec::<String>::new(), "round {round}");
    }
}

#[tokio::test]
async fn a_flow_over_a_private_network_is_a_reason_by_its_destination() {
    let bench = Bench::new();
    // Nothing answers there, and a failure is an answer, too.
    let cmd = "(exec 3<> /dev/tcp/192.0.2.7/81) 2> /dev/null; true";
    let ask = Ask::new(format!("timeout 1 bash -c '{cmd}'; true")).args(json!({ "network": "private" }));
    let it = Traced::run(&bench, ask).await;
    assert_eq!(it.reasons(), ["it used the network: 192.0.2.7:81"], "{}", it.output);
}

#[tokio::test]
async fn a_question_for_a_name_is_a_reason() {
    let bench = Bench::new();
    let ask = Ask::new("timeout 5 getent hosts name.invalid; true").args(json!({ "network": "private" }));
    let it = Traced::run(&bench, ask).await;
    assert_eq!(it.reasons(), ["it used the network: names were asked for"], "{}", it.output);
}

#[tokio::test]
async fn the_machines_network_is_a_reason() {
    let bench = Bench::new();
    let it = Traced::run(&bench, Ask::new("true").args(json!({ "network": "host" }))).await;
    assert_eq!(it.reasons(), ["it could use the machine's network"], "{}", it.output);
}

#[tokio::test]
async fn a_service_is_a_reason_by_its_name() {
    let bench = Bench::new();
    let services = json!({ "db": { "image": "host", "cmd": "sleep 60" } });
    let it = Traced::run(&bench, Ask::new("true").args(json!({ "network": "private", "services": services }))).await;
    assert_eq!(it.reasons(), ["its service db is not traced"], "{}", it.output);
}
