//! Limits and the network, as requested in `runner_args`: [`Limits`](crate::runner::Limits).

use serde_json::json;

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::StdStream,
    runner::RunnerErrorKind,
};

/// Checks that a step over its memory limit is distinguished from one that exits with 137.
pub(in crate::conformance) async fn memory(harness: &Harness<'_>) -> Result<(), Broken> {
    // The shell itself holds 200 MB, long enough for a runner that polls.
    let greedy = "x=$(head -c 209715200 /dev/zero | tr '\\0' x); sleep 1; exit 1";
    let done = harness.step(Step::new(greedy).args(json!({ "memory": "32m" }))).await?;
    done.failed_as(RunnerErrorKind::OutOfMemory)?;
    harness.step(Step::new("true").args(json!({ "memory": "64m" }))).await?.passed()?;
    let killed = harness.step(Step::new("kill -KILL $$").args(json!({ "memory": "64m" }))).await?;
    expect("the exit code of a command that was killed within its limit", killed.exit_code()?, 137)
}

pub(in crate::conformance) async fn processes(harness: &Harness<'_>) -> Result<(), Broken> {
    let fork = "i=0; while [ $i -lt 40 ]; do sleep 3 & i=$((i+1)); done; wait; exit 0";
    let done = harness.step(Step::new(fork).args(json!({ "pids": 16 }))).await?;
    // A daemon may not report why the command failed.
    if done.failed_as(RunnerErrorKind::TooManyProcesses).is_err() && done.exit_code()? == 0 {
        return Err(Broken::new("a step with a limit of 16 processes had 40"));
    }
    harness.step(Step::new("sleep 0 & wait").args(json!({ "pids": 50 }))).await?.passed()
}

/// Checks that arguments are checked before anything runs, and that errors have the place of the mistake.
pub(in crate::conformance) async fn arguments(harness: &Harness<'_>) -> Result<(), Broken> {
    let schema = harness.runner.args_schema();
    if schema.json_schema().is_none() {
        return Err(Broken::new("a runner with limits has no schema for them"));
    }
    for (args, place) in [
        (json!({ "memory": "much" }), "runner_args.memory"),
        (json!({ "cpus": -1 }), "runner_args.cpus"),
        (json!({ "pids": 0 }), "runner_args.pids"),
        (json!({ "network": "bridge" }), "runner_args.network"),
        (json!({ "memroy": "1g" }), "runner_args.memroy"),
    ] {
        match schema.check(&args) {
            Ok(()) => return Err(Broken::new(format!("{args} was taken"))),
            Err(error) => expect(&format!("the place of the mistake in {args}"), error.path.as_str(), place)?,
        }
    }
    for args in
        [json!({ "memory": "64m", "cpus": 0.5, "pids": 50, "network": "host" }), json!({ "memory": 67_108_864 })]
    {
        if let Err(error) = schema.check(&args) {
            return Err(Broken::new(format!("{args} was refused: {error}")));
        }
        harness.step(Step::new("true").args(args)).await?.passed()?;
    }
    Ok(())
}

/// Checks that there is only a loopback device.
pub(in crate::conformance) async fn network_none(harness: &Harness<'_>) -> Result<(), Broken> {
    let cmd = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '";
    let done = harness.step(Step::new(cmd).args(json!({ "network": "none" }))).await?;
    done.passed()?;
    // Some kernels create a few unconnected tunnel devices in every network namespace.
    let leads_out =
        |name: &String| ["eth", "en", "wl", "docker", "br", "veth"].iter().any(|kind| name.starts_with(kind));
    let devices = done.lines(StdStream::Stdout);
    expect(
        "the devices that lead out",
        devices.iter().filter(|name| leads_out(name)).collect::<Vec<_>>(),
        Vec::<&str>::new(),
    )?;
    expect("whether there is a loopback device", devices.iter().any(|name| name == "lo"), true)
}

/// Checks that a step has ports of its own and a way out, unless it asks for the machine's network.
pub(in crate::conformance) async fn network_private(harness: &Harness<'_>) -> Result<(), Broken> {
    let failed = |error: std::io::Error| Broken::new(format!("this machine has no port left: {error}"));
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    // The address and the port of a socket that listens, and the destination of a default route.
    let own = format!("0100007F:{port:04X} 00000000:0000 0A");
    for args in [json!({}), json!({ "network": "private" })] {
        let done = harness.step(Step::new("cat /proc/net/tcp /proc/net/route").args(args)).await?;
        done.passed()?;
        let lines = done.lines(StdStream::Stdout);
        expect("whether the machine's loopback is shared", lines.iter().any(|line| line.contains(&own)), false)?;
        let leads_out = |line: &&String| line.split_ascii_whitespace().nth(1) == Some("00000000");
        expect("the number of default routes", lines.iter().filter(leads_out).count(), 1)?;
    }
    Ok(())
}
