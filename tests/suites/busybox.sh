# busybox, every applet that its default configuration has. Runs inside of the root file system.
prepare() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get build-dep -q -y --no-install-recommends busybox
    mkdir -p /src/busybox && cd /src/busybox
    apt-get source -q -o APT::Sandbox::User=root busybox
    cd busybox-*/
    make -s defconfig
    make -s -j"$(nproc)"
}

check() {
    cd /src/busybox/busybox-*/testsuite || exit 1
    ./runtest >/tmp/busybox.log 2>&1 || true
    cat /tmp/busybox.log
    sed -n -e 's/^\(PASS\|FAIL\): \(.*\)/RESULT \1 \2/p' -e 's/^\(SKIPPED\|UNTESTED\): \(.*\)/RESULT SKIP \2/p' /tmp/busybox.log
}

set -e
"$1"
