"""The two programs: where they are, and the environment in which they run."""

import dataclasses
import glob
import os
import pathlib
import shutil
import subprocess

VERSION = "0.0.9"
NPM = ("esbuild@0.28.2", "node@24.21.0")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Missing(Exception):
    """Something is missing without which nothing can be compared."""


@dataclasses.dataclass
class Program:
    name: str
    path: pathlib.Path
    env: dict


def cache():
    """Returns the directory of what is built once: the published hm, npm's programs, the image's files."""
    named = os.environ.get("HM_PUBLISHED_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(named) if named else pathlib.Path(base) / "hm-published"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def find(scratch):
    """Returns both programs by name."""
    node = node_dir()
    published, ours = published_hm(node), pathlib.Path(os.environ.get("HM", REPOSITORY / "target/debug/hm")).resolve()
    if not ours.exists():
        raise Missing(f"{ours} does not exist: build it, or set HM")
    # Nothing of the user's but how packages are fetched. Each case has a home directory of its own.
    path = os.pathsep.join([str(node), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
    env = {"PATH": path, "LANG": "C.UTF-8", "TZ": "UTC"}
    env |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT_"))}
    both = {}
    for name, program in (("published", published), ("ours", ours)):
        both[name] = Program(name, program, env | {"HOME": str(scratch)})
    both["ours"].env |= {"HM_CACHE_DIR": str(scratch / "store"), "HM_CACHE_GC": "off", "HM_HARMONT_TS": typescript_package()}
    both["ours"].env |= {name: os.environ[name] for name in ("HM_PYTHON", "HM_STEP") if name in os.environ}
    return both


def published_hm(node):
    named = os.environ.get("HM_PUBLISHED")
    if named:
        path = pathlib.Path(named).resolve()
        if not path.exists():
            raise Missing(f"HM_PUBLISHED={named} does not exist")
        return path
    root = cache() / "root"
    path = root / "bin/hm"
    if not path.exists():
        if not shutil.which("cargo"):
            raise Missing("HM_PUBLISHED is not set, and there is no cargo to build the published hm")
        install = ["cargo", "install", "harmont-cli", "--version", VERSION, "--locked", "--debug", "--root", str(root)]
        env = os.environ | {"PATH": f"{node}{os.pathsep}{os.environ['PATH']}", "CARGO_PROFILE_DEV_DEBUG": "0"}
        env["CARGO_TARGET_DIR"] = str(cache() / "target")
        built = subprocess.run(install, env=env, stdin=subprocess.DEVNULL)
        shutil.rmtree(cache() / "target", ignore_errors=True)
        if built.returncode != 0:
            raise Missing(f"cargo install harmont-cli {VERSION} failed")
    return path


def node_dir():
    """Returns a directory with esbuild, which the published hm needs to be built, and a Node that knows TypeScript."""
    for place in (os.path.dirname(shutil.which("esbuild") or ""), str(cache() / "npm/node_modules/.bin")):
        if place and os.path.exists(os.path.join(place, "esbuild")) and knows_typescript(os.path.join(place, "node")):
            return pathlib.Path(place)
    if not shutil.which("npm"):
        raise Missing("there is no npm, which fetches esbuild and node")
    prefix = cache() / "npm"
    install = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(prefix), *NPM]
    if subprocess.run(install, stdin=subprocess.DEVNULL).returncode != 0:
        raise Missing(f"npm install {' '.join(NPM)} failed")
    return prefix / "node_modules/.bin"


def knows_typescript(node):
    check = [node, "-e", "process.exit(require('module').registerHooks ? 0 : 1)"]
    try:
        return subprocess.run(check, capture_output=True).returncode == 0
    except OSError:
        return False


def typescript_package():
    """Returns the package `@harmont/hm` in the source of the published hm."""
    if "HM_HARMONT_TS" in os.environ:
        return os.environ["HM_HARMONT_TS"]
    home = os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo"
    found = glob.glob(f"{home}/registry/src/*/hm-dsl-engine-{VERSION}/harmont-ts/src")
    if not found:
        raise Missing(f"the source of hm-dsl-engine {VERSION} is not in {home}: set HM_HARMONT_TS")
    return found[0]
