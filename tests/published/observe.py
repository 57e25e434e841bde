"""Runs a case with one program, and notes what a user or another program could notice."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import threading

# A step that is given an hour is not waited for.
PATIENCE = 180


class Unusable(Exception):
    """The case itself is wrong."""


def observe(project, case, program, both):
    """Returns what was noticed, by its place in the case: COMMAND/ASPECT."""
    project.mkdir(parents=True)
    # A home directory for each case: the published hm keeps its cache there, for all projects.
    home = project.parents[2] / "home" / program.name / project.name
    home.mkdir(parents=True)
    program = dataclasses.replace(program, env=program.env | {"HOME": str(home)})
    prepare(project, case, both)
    seen, names = {}, set()
    for command in case["command"]:
        args = command.get(program.name, command.get("args"))
        name = command.get("name") or args[0]
        if name in names:
            raise Unusable(f"two commands are called {name}: give one a name")
        names.add(name)
        if "before" in command:
            subprocess.run(["sh", "-euc", command["before"]], cwd=project, check=True, env=program.env)
        code, out, err = execute(project, args, command, program)
        # Else a program that hangs, or ours if it panics, could count as a listed difference.
        if code == -signal.SIGKILL or (program.name == "ours" and code == 101):
            raise Unusable(f"{program.name} {name}: did not end by itself, or panicked ({code})")
        noticed = {"exit": code, "stdout": "text" if out.strip() else "empty", "stderr": "text" if err.strip() else "empty"}
        if "json" in args:
            noticed |= events(out)
        elif args and args[0] in ("render", "pipelines") and code == 0:
            noticed |= document(out, command.get("bytes", False))
        with_contents = not case.get("names_only", False)
        noticed |= {f"tree:{path}": what for path, what in tree(project, with_contents).items()}
        for aspect in command.get("not", []):
            noticed = {key: value for key, value in noticed.items() if key.split(":")[0] != aspect}
        seen |= {f"{name}/{aspect}": value for aspect, value in noticed.items()}
    return seen


def prepare(project, case, both):
    files = dict(case.get("files", {}))
    if "python" in case:
        files[".hm/ci.py"] = case["python"]
    if "typescript" in case:
        files[".hm/ci.ts"] = case["typescript"]
    if "ir" in case:
        files |= shim(read_fixture(case))
    if "document" in case:
        files |= shim(case["document"])
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if "init" in case:
        by = both[case["init"]["by"]]
        wrote = subprocess.run(
            [by.path, "init", "-t", case["init"]["kind"]], cwd=project, env=by.env, stdin=subprocess.DEVNULL, capture_output=True
        )
        if wrote.returncode != 0:
            raise Unusable(f"{by.name} init: {wrote.stderr.decode()}")
    if "prepare" in case:
        subprocess.run(["sh", "-euc", case["prepare"]], cwd=project, check=True, capture_output=True)
    if case.get("git"):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false"]
        for args in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
            subprocess.run(["git", *args], cwd=project, check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": os.devnull})


# The published hm takes pipelines only from its DSLs: this one answers with a document.
SHIM = """import json
import pathlib
import harmont
document = json.loads((pathlib.Path(__file__).parent / "document.txt").read_text())
entry = {"slug": "ci", "name": "ci", "allow_manual": True, "triggers": [], "definition": document}
harmont.dump_registry_json = lambda **_: json.dumps({"schema_version": "1", "pipelines": [entry]})
"""


def shim(document):
    return {".hm/ci.py": SHIM, ".hm/document.txt": document}


def read_fixture(case):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), case["ir"])) as file:
        text = file.read()
    for old, new in case.get("replace", []):
        if old not in text:
            raise Unusable(f"{case['ir']} does not contain {old}")
        text = text.replace(old, new)
    return text


def execute(project, args, command, program):
    """Returns the exit code and the output. At the marker `interrupt` on stdout, the program gets SIGINT."""
    cwd = project / command.get("in", ".")
    env = program.env | command.get("env", {})
    child = subprocess.Popen(
        [program.path, *args], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )
    late = threading.Timer(PATIENCE, end, [child])
    late.start()
    err = []
    reader = threading.Thread(target=lambda: err.append(child.stderr.read()))
    reader.start()
    out, marker = [], command.get("interrupt")
    try:
        for line in child.stdout:
            out.append(line)
            if marker and b'"step_log"' in line and marker.encode() in line:
                child.send_signal(signal.SIGINT)
                marker = None
        code = child.wait()
    finally:
        late.cancel()
        end(child)
        reader.join()
    if os.environ.get("HM_PUBLISHED_VERBOSE"):
        print(f"  $ {program.name} {' '.join(args)} -> {code}\n{b''.join(out).decode()[-4000:]}{err[0].decode()[-4000:]}", flush=True)
    return code, b"".join(out).decode(), err[0].decode()


def end(child):
    """Kills a program that still runs, and what it started in its group."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def events(out):
    """Returns what the event stream means to a reader who knows the published events."""
    seen, keys, steps, logs = {}, {}, {}, {}
    for line in filter(None, out.splitlines()):
        try:
            event = json.loads(line)
        except ValueError:
            return {"stream": f"a line is no JSON: {line}"}
        kind = event.get("kind")
        key = keys.get(event.get("step_id"))
        if kind == "build_start":
            seen["plan"] = {name: event["plan"].get(name) for name in ("step_count", "chain_count")}
            seen["default_runner"] = event["plan"].get("default_runner")
        elif kind == "step_queued":
            keys[event["step_id"]] = key = event["key"]
            steps[key] = "queued"
            logs[key] = {"stdout": [], "stderr": []}
            seen[f"queued:{key}"] = {name: event.get(name) for name in ("chain_idx", "parent_key", "display_name")}
        elif kind == "step_start":
            steps[key] = "started"
            seen[f"runner:{key}"] = event["runner"]
            seen[f"image:{key}"] = event["image"]
        elif kind == "step_log":
            logs[key][event["stream"]].append(event["line"])
        elif kind == "step_cache_hit":
            steps[key] = "cached"
            seen[f"hit:{key}"] = event["key"]
        elif kind == "step_end":
            code = event["exit_code"]
            ended = {0: "passed", 124: "timed out"}.get(code, f"failed: {code}")
            steps[key] = "cached" if steps[key] == "cached" and code == 0 else ended
            snapshot = event["snapshot"]
            seen[f"snapshot:{key}"] = snapshot and ("ephemeral" if snapshot.startswith("ephemeral:") else "kept")
        elif kind == "chain_failed":
            name = f"chain_failed:{event['failed_step_key']}"
            seen[name] = {name: event[name] for name in ("chain_idx", "exit_code", "message")}
        elif kind == "build_accepted":
            seen["accepted"] = event["build"]["pipeline"]
        elif kind == "build_end":
            seen["end"] = event["exit_code"]
        else:
            seen[f"kind:{kind}"] = "an event of another kind"
    seen |= {f"status:{key}": status for key, status in steps.items()}
    for key, streams in logs.items():
        seen |= {f"{stream}:{key}": lines for stream, lines in streams.items() if lines}
    return seen


def document(out, with_bytes):
    try:
        seen = {"json": json.loads(out)}
    except ValueError:
        return {"json": f"no JSON: {out[:200]}"}
    if with_bytes:
        # Ours ends the line.
        seen["bytes"] = out.removesuffix("\n")
    return seen


def tree(project, with_contents):
    """Returns the files below a directory, but for git's own, and their contents in short."""
    found = {}
    for path in sorted(project.rglob("*")):
        relative = path.relative_to(project)
        if relative.parts[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        what = "a link" if path.is_symlink() else "a file"
        is_read = with_contents and path.is_file() and not path.is_symlink()
        found[str(relative)] = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if is_read else what
    return found
