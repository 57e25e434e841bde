"""What the programs talk to: a container daemon for the published hm, a registry for ours, and one image in both."""

import fcntl
import http.client
import io
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.request

from programs import Missing

IMAGE = ("ubuntu", "24.04")
OTHER = ("debian", "bookworm")
IMAGES = (IMAGE, OTHER)
DEBIAN = "bookworm"

# Commands of the templates that want the network, or are big: each prints how it was called and what is there.
TOOLS = """apt-get curl dpkg erl unzip cargo rustc rustup uv npm npx go gofmt python3 cmake ninja ccache ctest clang-format
run-clang-tidy mix elixir zig bun git golangci-lint""".split()
TOOL = """#!/bin/sh
# What curl prints is often run, and gofmt prints what is wrong.
case ${0##*/} in curl|gofmt) exit 0;; esac
echo "${0##*/} $*"
case ${0##*/} in
unzip) mkdir -p "$4/bin"; for name in elixir mix iex elixirc; do cp "$0" "$4/bin/$name"; done;;
cmake) mkdir -p build; echo built > build/out;;
python3) mkdir -p .venv/bin; for name in pip pytest; do cp "$0" ".venv/bin/$name"; done;;
npm|uv|cargo|zig|mix|go) echo "$*" >> made;;
esac
find . -type f ! -path './proc/*' | sort | head -n 40
"""
# What the templates unpack, they run.
TAR = """#!/bin/sh
case $* in
*-x*) while [ $# -gt 0 ]; do [ "$1" = -C ] && to=$2; shift; done
      mkdir -p "$to/go/bin"
      for at in zig go/bin/go go/bin/gofmt; do cp /usr/local/bin/curl "$to/$at"; done;;
*) exec /bin/tar "$@";;
esac
"""


class Services:
    """The daemon and the registry, in a directory that disappears with them."""

    def __init__(self, scratch, cache):
        self.dir, self.cache, self.children = scratch / "services", cache, []

    def __enter__(self):
        self.dir.mkdir()
        try:
            root = self.root()
            self.start_daemon()
            self.import_image(root)
            self.start_registry()
            self.fill_registry()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in reversed(self.children):
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        # The daemon leaves its own network namespace mounted if it had containers without a network.
        namespace = self.dir / "exec/netns/default"
        if namespace.exists():
            subprocess.run(["umount", "-l", namespace], stderr=subprocess.DEVNULL)

    def env(self, side):
        env = {"DOCKER_HOST": f"unix://{self.dir}/docker.sock"}
        return env if side == "published" else env | {"HM_REGISTRY_MIRROR": self.registry}

    def root(self):
        """Returns a tar file of a small Debian, which is made once."""
        path = self.cache / f"{DEBIAN}.tar"
        # One process makes it; others wait for it.
        with open(self.cache / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                need("mmdebstrap")
                part = self.cache / f"{DEBIAN}.part.tar"
                excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale")]
                make = ["mmdebstrap", "--quiet", "--variant=essential", "--include=perl-base", *excluded, DEBIAN, str(part)]
                if subprocess.run(make, stdin=subprocess.DEVNULL).returncode != 0:
                    raise Missing("mmdebstrap failed")
                part.rename(path)
        return path

    def start_daemon(self):
        need("dockerd")
        if os.geteuid() != 0:
            raise Missing("dockerd needs root")
        args = ["--host", f"unix://{self.dir}/docker.sock", "--data-root", self.dir / "data", "--exec-root", self.dir / "exec"]
        args += ["--pidfile", self.dir / "pid", "--iptables=false", "--ip6tables=false"]
        # In a network of its own, it can have the usual bridge, and changes nothing on this machine.
        self.start("unshare", ["--net", "dockerd", *args], lambda: self.docker("GET", "/_ping") == b"OK")

    def import_image(self, root):
        """Gives the daemon the image: the root with the tools."""
        tar = self.dir / "image.tar"
        shutil.copyfile(root, tar)
        with tarfile.open(tar, "a") as archive:
            files = {f"usr/local/bin/{name}": TOOL for name in TOOLS} | {"usr/local/bin/tar": TAR}
            files |= {"root/.local/bin/uv": TOOL, "root/.cargo/env": "# empty\n"}
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.mode, entry.size = 0o755, len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
        name, tag = IMAGE
        with open(tar, "rb") as body:
            length = {"Content-Length": str(tar.stat().st_size), "Content-Type": "application/x-tar"}
            answer = self.docker("POST", f"/images/create?fromSrc=-&repo={name}&tag={tag}", body, length)
        if b"sha256:" not in answer:
            raise Missing(f"the daemon did not import the image: {answer!r}")
        tar.unlink()
        # The other name is of the same image.
        self.docker("POST", f"/images/{name}:{tag}/tag?repo={OTHER[0]}&tag={OTHER[1]}")

    def start_registry(self):
        need("docker-registry")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.registry = f"127.0.0.1:{port}"
        config = self.dir / "registry.yml"
        config.write_text(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n"
            f"    rootdirectory: {self.dir}/registry\nhttp:\n  addr: {self.registry}\n"
        )
        self.start("docker-registry", ["serve", config], lambda: urllib.request.urlopen(f"http://{self.registry}/v2/", timeout=5))

    def fill_registry(self):
        need("skopeo")
        name, tag = IMAGE
        tar = self.dir / "saved.tar"
        tar.write_bytes(self.docker("GET", f"/images/{name}:{tag}/get"))
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", f"docker-archive:{tar}"]
        for name, tag in IMAGES:
            copied = subprocess.run([*copy, f"docker://{self.registry}/library/{name}:{tag}"], stdin=subprocess.DEVNULL)
            if copied.returncode != 0:
                raise Missing("skopeo did not copy the image to the registry")
        tar.unlink()

    def start(self, name, args, answers):
        log = open(self.dir / f"{name}.log", "wb")
        # A group of its own: Ctrl-C is for this script, which ends its children one by one.
        child = subprocess.Popen([name, *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.children.append(child)
        patience = time.monotonic() + 120
        while time.monotonic() < patience and child.poll() is None:
            try:
                if answers():
                    return
            except OSError:
                pass
            time.sleep(0.1)
        tail = (self.dir / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise Missing(f"{name} does not come up: {' '.join(tail)}")

    def docker(self, method, path, body=None, headers=None):
        connection = UnixConnection(self.dir / "docker.sock")
        connection.request(method, path, body, headers or {})
        return connection.getresponse().read()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=300)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def need(program):
    if not shutil.which(program):
        raise Missing(f"there is no {program}")
