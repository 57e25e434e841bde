# POSIX file system semantics (the crate pjdfstest), on the step's own files. Runs inside of the root file system,
# except `host`, which builds the program: Debian's cargo is too old for it.
host() {
    cargo install --quiet --locked --root "$WORK/pjdfstest" pjdfstest@0.2.2
    install -D "$WORK/pjdfstest/bin/pjdfstest" "$ROOT/usr/local/bin/pjdfstest"
}

prepare() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends acl libacl1
    for user in tests pjdfstest; do
        getent passwd "$user" >/dev/null || useradd --user-group --no-create-home "$user"
    done
    cat >/src/pjdfstest.toml <<'TOML'
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
TOML
}

check() {
    mkdir -p /var/tmp/pjdfstest
    pjdfstest -c /src/pjdfstest.toml -p /var/tmp/pjdfstest >/tmp/pjdfstest.log 2>&1 || true
    cat /tmp/pjdfstest.log
    sed -n -e 's/^\([a-z_:0-9]\+\) *\t*ok$/RESULT PASS \1/p' -e 's/^\([a-z_:0-9]\+\) *\t*FAILED.*/RESULT FAIL \1/p' \
        -e 's/^\([a-z_:0-9]\+\) *\t*skipped.*/RESULT SKIP \1/p' /tmp/pjdfstest.log
}

set -e
"$1"
