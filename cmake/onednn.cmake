# SPDX-License-Identifier: MIT
# oneDNN 3 for linear layers at prompt size: its headers now, its library at run time. Looked for in
# TOKENSPARSE_ONEDNN_DIR, then in the cache that scripts/fetch-onednn fills, then in the system.
# Gives tsp_onednn: headers, OpenMP, and the path of the library that was found.
set(TOKENSPARSE_ONEDNN_DIR "" CACHE PATH
    "Folder with include/ and lib/ of oneDNN 3; scripts/fetch-onednn prints one")
set(hints ${TOKENSPARSE_ONEDNN_DIR})
if(DEFINED ENV{TOKENSPARSE_CACHE})
  list(APPEND hints $ENV{TOKENSPARSE_CACHE}/onednn-3.2.0)
elseif(DEFINED ENV{XDG_CACHE_HOME})
  list(APPEND hints $ENV{XDG_CACHE_HOME}/tokensparse/onednn-3.2.0)
elseif(DEFINED ENV{HOME})
  list(APPEND hints $ENV{HOME}/.cache/tokensparse/onednn-3.2.0)
endif()

find_path(TOKENSPARSE_ONEDNN_INCLUDE oneapi/dnnl/dnnl.h HINTS ${hints} PATH_SUFFIXES include)
find_library(TOKENSPARSE_ONEDNN_LIBRARY NAMES libdnnl.so.3 HINTS ${hints} PATH_SUFFIXES lib)
mark_as_advanced(TOKENSPARSE_ONEDNN_INCLUDE TOKENSPARSE_ONEDNN_LIBRARY)
if(NOT TOKENSPARSE_ONEDNN_INCLUDE OR NOT TOKENSPARSE_ONEDNN_LIBRARY)
  message(FATAL_ERROR "TOKENSPARSE_ONEDNN=ON, and no oneDNN 3 was found; "
                      "scripts/fetch-onednn fetches it")
endif()
find_package(OpenMP REQUIRED COMPONENTS CXX)

add_library(tsp_onednn INTERFACE)
target_include_directories(tsp_onednn SYSTEM INTERFACE ${TOKENSPARSE_ONEDNN_INCLUDE})
target_compile_definitions(tsp_onednn INTERFACE
  TOKENSPARSE_ONEDNN_LIBRARY="${TOKENSPARSE_ONEDNN_LIBRARY}")
target_link_libraries(tsp_onednn INTERFACE OpenMP::OpenMP_CXX ${CMAKE_DL_LIBS})
