# GNU tar: an autotest suite. Runs inside of the root file system.
prepare() {
    export DEBIAN_FRONTEND=noninteractive FORCE_UNSAFE_CONFIGURE=1
    apt-get update -q
    apt-get build-dep -q -y --no-install-recommends tar
    mkdir -p /src/tar && cd /src/tar
    apt-get source -q -o APT::Sandbox::User=root tar
    cd tar-*/
    [ -x configure ] || autoreconf -fi
    ./configure --quiet --disable-nls
    make -s -j"$(nproc)"
}

check() {
    cd /src/tar/tar-*/ || exit 1
    make check >/tmp/tar.log 2>&1 || true
    cat /tmp/tar.log
    # "  12: append files with long names      ok"
    sed -n -e 's/^ *\([0-9]\+: .*[^ ]\) \+ok *$/RESULT PASS \1/p' \
        -e 's/^ *\([0-9]\+: .*[^ ]\) \+FAILED .*/RESULT FAIL \1/p' \
        -e 's/^ *\([0-9]\+: .*[^ ]\) \+skipped .*/RESULT SKIP \1/p' \
        -e 's/^ *\([0-9]\+: .*[^ ]\) \+expected failure .*/RESULT XFAIL \1/p' /tmp/tar.log
}

set -e
"$1"
