# GNU coreutils, and the gnulib tests that come with it. Runs inside of the root file system.
prepare() {
    export DEBIAN_FRONTEND=noninteractive FORCE_UNSAFE_CONFIGURE=1
    apt-get update -q
    apt-get build-dep -q -y --no-install-recommends coreutils
    mkdir -p /src/coreutils && cd /src/coreutils
    apt-get source -q -o APT::Sandbox::User=root coreutils
    cd coreutils-*/
    ./configure --quiet --disable-nls
    make -s -j"$(nproc)"
    make -s -j"$(nproc)" check TESTS= SUBDIRS=.
}

check() {
    cd /src/coreutils/coreutils-*/ || exit 1
    # The same user database for both sides, and a second user for tests that drop their rights.
    make -k -j"$(nproc)" check-recursive RUN_VERY_EXPENSIVE_TESTS=no NON_ROOT_USERNAME=nobody || true
    find . -name '*.trs' | while read -r file; do
        printf 'RESULT %s %s\n' "$(sed -n 's/^:test-result: \([A-Z]*\).*/\1/p' "$file" | head -n 1)" "$file"
    done
}

set -e
"$1"
