"""Prints the pipelines that the given files register, as one JSON object on what was stdout at the start.

Run by `hm` as `python3 -B -c SOURCE PROJECT WHEEL FILE...`, in a sandbox. WHEEL is a file with the package `harmont`,
for a Python that does not have it, or empty. From the first line on, stdout is stderr for the files themselves, so
that whatever they print cannot mix with the answer.
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

project, wheel, *files = sys.argv[1:]
if wheel:
    sys.path.append(wheel)

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


def causes(error):
    """Yields an error, and what led to it."""
    for _ in range(8):
        if error is None:
            return
        yield error
        nested = getattr(error, "exceptions", None)
        shown = None if error.__suppress_context__ else error.__context__
        error = nested[0] if nested else error.__cause__ or shown


def clean(text):
    """Returns text that any reader of JSON takes: names of files may have half a character."""
    return text and text.encode("utf-8", "replace").decode()


def located(error):
    """Returns the last line of the project's own files that an error comes from."""
    import traceback

    file, line, source = None, None, None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(project + os.sep):
            file, line, source = frame.filename, frame.lineno, frame.line
    message = ": ".join(filter(None, map(str, causes(error))))
    if isinstance(error, SyntaxError) and str(error.filename).startswith(project + os.sep):
        file, line, source, message = error.filename, error.lineno, error.text, error.msg
    return {
        "file": file and os.path.relpath(file, project),
        "line": line,
        "kind": type(error).__name__,
        "message": clean(message),
        "source": source and clean(source.strip()[:500]),
    }


for file in files:
    folder = os.path.dirname(file)
    if folder not in sys.path:
        sys.path.append(folder)
try:
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
    result = {"envelope": harmont.dump_registry_json()}
except Exception as error:
    result = {"error": located(error)}

answer.write(json.dumps({**result, "missed": sorted(map(clean, missed))}))
answer.close()
