#!/bin/sh
# Runs the program that the build step left, and compares what it prints.
set -eu
cd "$(dirname "$0")/.."

compare() {
    name=$1 expected=$2 actual=$3
    if [ "$expected" = "$actual" ]; then
        echo "ok - $name"
    else
        printf 'NOT OK - %s\nexpected:\n%s\nactual:\n%s\n' "$name" "$expected" "$actual"
        exit 1
    fi
}

compare "the most frequent words" "      2 b
      1 a" "$(echo 'a b; B!' | build/tally)"
compare "no more than asked for" "      3 x" "$(echo 'x y x z x' | build/tally 1)"
compare "no text, no words" "" "$(build/tally </dev/null)"
status=0
build/tally nonsense </dev/null 2>/dev/null || status=$?
compare "wrong usage ends 2" 2 "$status"
