#!/bin/sh
# SPDX-License-Identifier: MIT
# Usage: cpu_isolation_test.sh NM OBJECT_FOLDER
# No kernel unit may emit a symbol that the linker merges (weak, unique): another unit, or a machine
# without the instructions, would run code built with this unit's flags.
set -eu
objects=$(find "$2" -name 'kernels_*.o')
[ -n "$objects" ] || { echo "no kernels_*.o under $2" >&2; exit 1; }
symbols=$("$1" -AC $objects)
merged=$(echo "$symbols" | grep -E ' [VvWwu] ' || true)
[ -z "$merged" ] || { echo "merged symbols:"; echo "$merged"; exit 1; }
