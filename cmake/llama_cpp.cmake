# SPDX-License-Identifier: MIT
# libllama and ggml, static, from the source in TOKENSPARSE_LLAMA_CPP_DIR (scripts/fetch-llama-cpp).
# Only what we link is built: targets `llama`, `ggml`, `ggml-base`, `ggml-cpu`. Their options and
# warnings stay inside the function's scope. They are optimised whatever our build type is, with the
# same flags, so that ccache serves one compilation to every preset and a sanitizer build stays fast.
if(NOT EXISTS ${TOKENSPARSE_LLAMA_CPP_DIR}/include/llama.h)
  message(FATAL_ERROR "TOKENSPARSE_LLAMA_CPP_DIR=${TOKENSPARSE_LLAMA_CPP_DIR} holds no "
                      "include/llama.h; scripts/fetch-llama-cpp prints a folder that does")
endif()

function(tsp_add_llama_cpp)
  set(BUILD_SHARED_LIBS OFF)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
  foreach(option COMMON TOOLS SERVER APP TESTS EXAMPLES UI)
    set(LLAMA_BUILD_${option} OFF)
  endforeach()
  set(LLAMA_USE_PREBUILT_UI OFF)
  set(LLAMA_OPENSSL OFF)
  set(LLAMA_ALL_WARNINGS OFF)
  set(LLAMA_BUILD_NUMBER 0)
  set(LLAMA_BUILD_COMMIT unknown)
  set(GIT_EXECUTABLE true)  # its source is no repository, and the commit of ours is not theirs
  set(GGML_CCACHE OFF)  # cmake/ccache.cmake has set it up
  foreach(language C CXX)
    set(CMAKE_${language}_FLAGS_${build_type} "-O3 -DNDEBUG")
    set(CMAKE_${language}_FLAGS "${CMAKE_${language}_FLAGS} -w")
  endforeach()
  set(CMAKE_MESSAGE_LOG_LEVEL WARNING)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # our plain variables win over their option()
  add_subdirectory(${TOKENSPARSE_LLAMA_CPP_DIR} ${PROJECT_BINARY_DIR}/llama.cpp EXCLUDE_FROM_ALL)
endfunction()

string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
tsp_add_llama_cpp()

# Theirs as system headers: their warnings are not ours.
add_library(tsp_llama INTERFACE)
target_include_directories(tsp_llama SYSTEM INTERFACE
  ${TOKENSPARSE_LLAMA_CPP_DIR}/include ${TOKENSPARSE_LLAMA_CPP_DIR}/ggml/include)
target_link_libraries(tsp_llama INTERFACE
  $<LINK_ONLY:llama> $<LINK_ONLY:ggml> $<LINK_ONLY:ggml-cpu> $<LINK_ONLY:ggml-base>)

# The Jinja of llama.cpp's programs, without the rest of its `common`: 30 s of compiling, once, on
# 2 cores AMD EPYC Zen 5 (2026-11-27); at -O3 it would be twice that.
set(jinja_sources jinja/lexer.cpp jinja/parser.cpp jinja/runtime.cpp jinja/string.cpp
    jinja/value.cpp json.cpp unicode.cpp)
list(TRANSFORM jinja_sources PREPEND ${TOKENSPARSE_LLAMA_CPP_DIR}/common/)
add_library(tsp_llama_jinja STATIC EXCLUDE_FROM_ALL ${jinja_sources})
target_compile_options(tsp_llama_jinja PRIVATE -w -O1)
target_include_directories(tsp_llama_jinja SYSTEM PUBLIC ${TOKENSPARSE_LLAMA_CPP_DIR}/common
  PRIVATE ${TOKENSPARSE_LLAMA_CPP_DIR}/vendor ${TOKENSPARSE_LLAMA_CPP_DIR}/ggml/include)
set_target_properties(tsp_llama_jinja PROPERTIES POSITION_INDEPENDENT_CODE ON)
