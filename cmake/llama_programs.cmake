# SPDX-License-Identifier: MIT
# `cmake -C` of this file configures llama.cpp's own programs as their users have them: shared libraries
# and the defaults, less what would be fetched. For scripts/plugin-check and the image's llama-server; the
# flags are the same, so that ccache serves one compilation to both.
set(CMAKE_BUILD_TYPE Release CACHE STRING "")
set(BUILD_SHARED_LIBS ON CACHE BOOL "")
set(GGML_RPC ON CACHE BOOL "")  # layers on another machine: plugin-check's offload
foreach(option COMMON TOOLS EXAMPLES SERVER)
  set(LLAMA_BUILD_${option} ON CACHE BOOL "")
endforeach()
foreach(option BUILD_TESTS BUILD_APP BUILD_UI USE_PREBUILT_UI OPENSSL)
  set(LLAMA_${option} OFF CACHE BOOL "")
endforeach()
set(LLAMA_BUILD_NUMBER 0 CACHE STRING "")
set(LLAMA_BUILD_COMMIT unknown CACHE STRING "")
