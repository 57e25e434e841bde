"""Prints where this interpreter finds its packages: fields that end in a zero byte, behind the line `hm-paths`.

Run by `hm` as `python -I -S -B -c SOURCE`, from `/`: neither the working directory nor a variable adds to what is imported.
Imports no more than it must, because it runs before every rendering.
"""

import site

# What a user installed for themselves counts, and `-I` leaves it out. A `sitecustomize` is not imported: a package that
# is installed as a link to its source would bring the one of that source.
site.check_enableusersite = lambda: True
site.execsitecustomize = site.execusercustomize = lambda: None
site.main()

import os
import sys

places = [entry for entry in sys.path if entry]
if not any(os.path.isdir(os.path.join(entry, "harmont")) for entry in places):
    import importlib.util

    # Packages that are installed as links to their sources have finders of their own.
    spec = importlib.util.find_spec("harmont")
    if spec is not None:
        places += list(spec.submodule_search_locations or [])

user_base = site.getuserbase() if site.ENABLE_USER_SITE else ""
fields = [sys.executable or "", user_base, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix] + places
sys.stdout.flush()
sys.stdout.buffer.write(b"\nhm-paths\n" + b"".join(os.fsencode(field) + b"\0" for field in fields))
sys.stdout.flush()
