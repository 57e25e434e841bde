# The tools and the library of POSIX access control lists. Runs inside of the root file system.
prepare() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get build-dep -q -y --no-install-recommends acl
    mkdir -p /src/acl && cd /src/acl
    apt-get source -q -o APT::Sandbox::User=root acl
    cd acl-*/
    [ -x configure ] || autoreconf -fi
    ./configure --quiet --disable-nls
    make -s -j"$(nproc)"
    make -s check TESTS=
    # Users and groups that its tests name.
    getent group users >/dev/null || groupadd users
    getent passwd bin >/dev/null && getent passwd daemon >/dev/null
}

check() {
    cd /src/acl/acl-*/ || exit 1
    make -k check || true
    find . -name '*.trs' | while read -r file; do
        printf 'RESULT %s %s\n' "$(sed -n 's/^:test-result: \([A-Z]*\).*/\1/p' "$file" | head -n 1)" "$file"
    done
}

set -e
"$1"
