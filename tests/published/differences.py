"""The list of differences that are known, and why there are."""

import fnmatch
import json
import tomllib


def judge(path, cases, is_whole, found):
    """Returns what is wrong: a difference that is not listed, and a listed one that no longer occurs."""
    listed = [(at, entry) for entry in tomllib.loads(path.read_text())["difference"] for at in places(entry)]
    wrong, occurred = [], set()
    for place, (published, ours) in found.items():
        fitting = [i for i, (at, entry) in enumerate(listed) if fits(at, entry, place, published, ours)]
        occurred.update(fitting)
        if not fitting:
            wrong.append(f"not listed: {place}\n    published: {json.dumps(published)}\n    ours:      {json.dumps(ours)}")
    for i, (at, entry) in enumerate(listed):
        # With a selection of cases, only a place in a case that ran can be missed.
        is_covered = is_whole or at.split("/")[0] in cases
        if is_covered and i not in occurred:
            wrong.append(f"listed, but does not occur: {at} ({entry['reason']})")
    return wrong


def places(entry):
    return entry["at"] if isinstance(entry["at"], list) else [entry["at"]]


def fits(at, entry, place, published, ours):
    """Says if an entry lists this difference: by its place and, where the entry has them, by both values."""
    if not fnmatch.fnmatchcase(place, at):
        return False
    values = (("published", published), ("ours", ours))
    return all(name not in entry or entry[name] == value for name, value in values)
