# SPDX-License-Identifier: MIT
# What the scripts share. Sourced, not run; expects `set -euo pipefail`.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=${TOKENSPARSE_JOBS:-$(nproc)}
# What the scripts fetch and build once; see scripts/fetching.py.
cache=${TOKENSPARSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tokensparse}

say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 1
}

# need_packages PACKAGE... : installs what is missing on Debian and Ubuntu. Without root it prints
# the command instead; elsewhere it says what to look for.
need_packages() {
  local missing=() package
  command -v dpkg-query >/dev/null || {
    say "not a Debian or Ubuntu machine; this needs what they call: $*"
    return 0
  }
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    die "some packages are missing; install them and run this again:
  sudo apt-get install -y --no-install-recommends ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  }
}

# The packages that a build needs, and what the tests need besides.
build_packages=(g++ cmake ninja-build git ca-certificates python3 python3-pip
  nlohmann-json3-dev libcli11-dev libgtest-dev)
test_packages=(pkg-config clang-format-14 python3-venv)

# step TEXT LOG COMMAND... : says what takes a while and how long it took; shows the log's end when
# it fails.
step() {
  local text=$1 log=$2 start=$SECONDS
  shift 2
  mkdir -p "$(dirname "$log")"
  printf '%s ... ' "$text" >&2
  if "$@" >"$log" 2>&1; then
    say "done ($((SECONDS - start)) s)"
  else
    say "failed"
    tail -n 40 "$log" >&2
    die "$text failed; the whole log is $log"
  fi
}
