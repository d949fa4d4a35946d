#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs the build, then uses it as others do: find_package, pkg-config, the program, each from a
# folder that knows nothing of this tree. usage: install_test.sh SOURCE BUILD
set -euo pipefail
source=$1 build=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The program's target alone makes all that is installed, the plugin too.
rm -f "$build/lib/libggml-tokensparse.so"
cmake --build "$build" --target tokensparse_cli
cmake --install "$build" --prefix "$work/staged"
mv "$work/staged" "$work/prefix" # an installed tree can be moved
prefix=$work/prefix

echo "find_package: both examples as a project of their own"
cp -r "$source/examples" "$work/examples"
cmake -G Ninja -S "$work/examples" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix"
cmake --build "$work/build"
"$work/build/example_prefill_c" | grep -E '^each head kept [0-9]+ of 4096 tokens$'
"$work/build/example_prefill_cc"

echo "pkg-config: the C example"
pc=$(dirname "$(find "$prefix" -name tokensparse.pc)")
export PKG_CONFIG_PATH=$pc
[ "$(pkg-config --modversion tokensparse)" = "$("$prefix/bin/tokensparse" --version)" ]
# shellcheck disable=SC2046  # words on purpose
cc -std=c11 "$work/examples/prefill.c" -o "$work/with_pkg_config" \
  $(pkg-config --cflags --libs tokensparse) -Wl,-rpath,"$(pkg-config --variable=libdir tokensparse)"
"$work/with_pkg_config"

echo "every public header compiles alone, as C and as C++"
for header in "$prefix"/include/tokensparse/*.h; do
  printf '#include <tokensparse/%s>\ntypedef int not_empty;\n' "$(basename "$header")" >"$work/alone.c"
  cc -std=c11 -Wall -Wextra -Wpedantic -Werror -I "$prefix/include" -c "$work/alone.c" -o /dev/null
  c++ -std=c++20 -Wall -Wextra -Wpedantic -Werror -I "$prefix/include" -x c++ -c "$work/alone.c" \
    -o /dev/null
done
echo '#include <tokensparse/tokensparse.hpp>' >"$work/alone.cc"
c++ -std=c++20 -Wall -Wextra -Wpedantic -Werror -I "$prefix/include" -c "$work/alone.cc" -o /dev/null

echo "the program runs from its new place and names the plugin installed with it, which loads"
(cd / && "$prefix/bin/tokensparse" info) | tee "$work/info"
if ! grep -q '^llama.cpp .*not in this build' "$work/info"; then
  plugin=$(find "$prefix" -name libggml-tokensparse.so)
  grep -Fx "plugin       export GGML_BACKEND_PATH=$plugin" "$work/info"
  python3 -c 'import ctypes, os, sys
plugin = ctypes.CDLL(sys.argv[1], os.RTLD_NOW | os.RTLD_LOCAL)
plugin.tokensparse_plugin_summary.restype = ctypes.c_char_p
print(plugin.tokensparse_plugin_summary().decode())' "$plugin" | grep '^served 0 attention nodes'
fi
