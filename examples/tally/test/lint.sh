#!/bin/sh
# Strict warnings as errors, and a few rules of style.
set -eu
cd "$(dirname "$0")/.."
for file in src/*.c test/*.c; do
    echo "checking $file"
    cc -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -fsyntax-only "$file"
done
if grep -nE '[[:space:]]+$|	' src/* test/*.c; then
    echo "no tabs, and no spaces at the end of a line, please" >&2
    exit 1
fi
echo "all clean"
