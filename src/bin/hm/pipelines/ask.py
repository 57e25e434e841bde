"""Prints where this interpreter finds its packages, as one JSON object on the last line.

Run by `hm` as `python -I -S -B -c SOURCE`, from `/`: neither the working directory nor a variable adds to what is imported.
"""

import site

# What a user installed for themselves counts, and `-I` leaves it out. A `sitecustomize` is not imported: a package that
# is installed as a link to its source would bring the one of that source.
site.check_enableusersite = lambda: True
site.execsitecustomize = site.execusercustomize = lambda: None
site.main()

import importlib.util
import json
import sys

places = [entry for entry in sys.path if entry]
spec = importlib.util.find_spec("harmont")
if spec is not None:
    places += list(spec.submodule_search_locations or [])

print()
print(json.dumps({
    "executable": sys.executable,
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix],
    "places": places,
    "user_base": site.getuserbase() if site.ENABLE_USER_SITE else None,
}))
