#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# -DGGML_NATIVE=OFF reaches llama.cpp: nothing is compiled for this processor alone. Configures, and
# compiles nothing. usage: portable_test.sh SOURCE LLAMA_CPP
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
configure() { # configure BUILD OPTION...
  cmake -G Ninja -S "$source" -B "$work/$1" -DTOKENSPARSE_LLAMA_CPP_DIR="$llama" \
    -DTOKENSPARSE_BUILD_TESTS=OFF -DTOKENSPARSE_BUILD_EXAMPLES=OFF "${@:2}" >"$work/log" ||
    { cat "$work/log" && exit 1; }
  grep -c -- '-march=native' "$work/$1/compile_commands.json" || true
}
source=$1 llama=$2
[ "$(configure portable -DGGML_NATIVE=OFF)" = 0 ]
[ "$(configure native)" -gt 0 ] # or the count above says nothing
