"""The list of differences that are known, and why there are."""

import fnmatch
import json
import tomllib


def judge(path, cases, found):
    """Returns what is wrong: a difference that is not listed, and a listed one that no longer occurs."""
    listed = tomllib.loads(path.read_text())["difference"]
    wrong, occurred = [], [False] * len(listed)
    for place, (published, ours) in found.items():
        fitting = [i for i, entry in enumerate(listed) if fits(entry, place, published, ours)]
        for i in fitting:
            occurred[i] = True
        if not fitting:
            wrong.append(f"not listed: {place}\n    published: {json.dumps(published)}\n    ours:      {json.dumps(ours)}")
    for entry, has_occurred in zip(listed, occurred):
        # With a selection of cases, only an entry whose cases all ran can be missed.
        is_covered = all(fnmatch.filter(cases, at.split("/")[0]) for at in places(entry))
        if is_covered and not has_occurred:
            wrong.append(f"listed, but does not occur: {', '.join(places(entry))} ({entry['reason']})")
    return wrong


def places(entry):
    return entry["at"] if isinstance(entry["at"], list) else [entry["at"]]


def fits(entry, place, published, ours):
    """Says if an entry lists this difference: by its place and, where the entry has them, by both values."""
    if not any(fnmatch.fnmatchcase(place, at) for at in places(entry)):
        return False
    values = (("published", published), ("ours", ours))
    return all(name not in entry or entry[name] == value for name, value in values)
