//! Steps that share the memory of a machine.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::support::{
    backends::usable,
    programs::hm,
    project::{Ended, Project},
    users::is_root,
};

const MIB: u64 = 1 << 20;

/// A control group with little memory, in the place of a small machine.
struct SmallMachine {
    group: PathBuf,
}

impl SmallMachine {
    /// Returns `None` if this process cannot make one.
    fn with_memory(bytes: u64) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = groups.lines().find_map(|line| line.split_once(":memory:"));
        // Version 2 does not let a group with processes have groups with limits.
        let parent = PathBuf::from(format!("/sys/fs/cgroup/memory{}", own?.1));
        let name = format!("small-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let group = parent.join(name);
        let made =
            fs::create_dir(&group).and_then(|()| fs::write(group.join("memory.limit_in_bytes"), bytes.to_string()));
        usable("memory cgroup", made.is_ok() || !is_root(), &format!("{made:?}"));
        made.is_ok().then_some(Self { group })
    }

    fn run(&self, project: &Project, args: &[&str]) -> Ended {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.group.display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &enter, "sh"]).arg(hm()).args(["run", "--format", "json-full"]).args(args);
        for (name, value) in project.hm(&[]).get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ended::of(command.current_dir(&project.dir))
    }
}

impl Drop for SmallMachine {
    fn drop(&mut self) {
        // Processes may take a moment to leave it.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Returns a command that has this much memory for a second, and fails if it does not get it.
fn hungry(bytes: u64) -> String {
    format!("head -c {bytes} /dev/zero | tail -c {bytes} | {{ sleep 2; test $(wc -c) = {bytes}; }}")
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

/// Returns the most steps that ran at once.
fn most_at_once(events: &[Value]) -> i64 {
    let running = events.iter().scan(0, |running, event| {
        *running += match event["kind"].as_str() {
            Some("step_start") => 1,
            Some("step_end" | "step_retry") if event["attempt"] != 0 => -1,
            _ => 0,
        };
        Some(*running)
    });
    running.max().unwrap()
}

#[test]
fn six_hungry_steps_share_a_machine_for_five() {
    let Some(machine) = SmallMachine::with_memory(700 * MIB) else { return };
    let command = hungry(700 / 5 * MIB);
    let keys = ["a", "b", "c", "d", "e", "f"];
    let project = Project::with_steps(&keys.map(|key| (key, &*command, None)));
    for runner in ["process", "sandbox"] {
        // Each runner has its own history.
        fs::remove_dir_all(&project.store).ok();
        let args = ["-j", "6", "--runner", runner];
        let ended = machine.run(&project, &args);
        if !usable(runner, ended.code != Some(3), &ended.stderr) {
            continue;
        }
        let first = ended.expect(0).events();
        let retries = of_kind(&first, "step_retry");
        assert!(!retries.is_empty(), "{first:?}");
        for retry in retries {
            let message = retry["message"].as_str().unwrap();
            assert!(message.starts_with("the machine ran out of memory while the step ran"), "{message}");
            assert!(message.ends_with("; it runs again with no other step beside it"), "{message}");
            assert!(retry.get("exit_code").is_none(), "it is not flaky");
        }
        let ends = of_kind(&first, "step_end");
        assert!(ends.iter().all(|end| end["status"] == "passed"), "{ends:?}");
        let peaks = ends.iter().map(|end| end["usage"]["peak_memory_bytes"].as_u64().unwrap());
        assert!(peaks.clone().all(|peak| (140 * MIB..160 * MIB).contains(&peak)), "{ends:?}");

        let second = machine.run(&project, &args).expect(0).events();
        assert_eq!(of_kind(&second, "step_retry"), [] as [&Value; 0]);
        let most = most_at_once(&second);
        assert!((3..=5).contains(&most), "{most} at once");

        // What the user says counts more than what the machine has.
        let third = machine.run(&project, &[&args[..], &["--memory", "320m"]].concat()).expect(0).events();
        assert_eq!(most_at_once(&third), 2);
        let alone = machine.run(&project, &[&args[..], &["--memory", "1m"]].concat()).expect(0).events();
        assert_eq!(most_at_once(&alone), 1, "a step that is alone always starts");
    }
}

#[test]
fn a_step_that_is_too_large_even_alone_is_out_of_memory() {
    let Some(machine) = SmallMachine::with_memory(300 * MIB) else { return };
    let too_large = hungry(400 * MIB);
    let project = Project::with_steps(&[("large", &too_large, None), ("other", "sleep 1", None)]);
    let events = machine.run(&project, &["-j", "2", "-k", "--runner", "process"]).expect(1).events();
    assert_eq!(of_kind(&events, "step_retry").len(), 1, "once");
    let ends = of_kind(&events, "step_end");
    let large = ends.iter().find(|end| end["exit_code"] != 0).unwrap();
    assert_eq!(large["attempt"], 2);
    assert!(large["message"].as_str().unwrap().starts_with("the machine ran out of memory"), "{large}");
}
