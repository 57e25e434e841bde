"""Prints the pipelines that the given files register, as one JSON object on what was stdout at the start.

Run by `hm` as `python3 -B -c SOURCE FILE...`, in a sandbox. From the first line on, stdout is stderr for the files
themselves, so that whatever they print cannot mix with the answer.
"""

import os
import sys

answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
sys.stdout = sys.stderr

# Nothing in the source directory stands in for a package that it happens to be named after.
if sys.path[0] == "":
    sys.path.append(sys.path.pop(0))

import importlib.util
import json

try:
    import harmont
except ModuleNotFoundError as error:
    if error.name != "harmont":
        raise
    answer.write('{"missing": "harmont"}')
    answer.close()
    sys.exit(0)

missed = set()


class Environ(type(os.environ)):
    """The environment, which notes the names that are asked for in vain: few variables are shown to a pipeline."""

    def __getitem__(self, name):
        try:
            return super().__getitem__(name)
        except KeyError:
            if len(missed) < 64 and len(name) < 256:
                missed.add(name)
            raise


os.environ.__class__ = Environ

files = sys.argv[1:]
for file in files:
    folder = os.path.dirname(file)
    if folder not in sys.path:
        sys.path.append(folder)
for file in files:
    name = os.path.splitext(os.path.basename(file))[0]
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    # As a plain import would, so that the files can import each other and run once.
    if name not in sys.modules:
        sys.modules[name] = module
        spec.loader.exec_module(module)
    elif os.path.realpath(getattr(sys.modules[name], "__file__", None) or "") != os.path.realpath(file):
        spec.loader.exec_module(module)

envelope = harmont.dump_registry_json()
answer.write(json.dumps({"envelope": envelope, "missed": sorted(missed)}))
answer.close()
