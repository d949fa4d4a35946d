# SPDX-License-Identifier: MIT
# What `tokensparse bench` measures with; included by cli/CMakeLists.txt, which has its verb.
add_library(tokensparse_bench STATIC
  ${PROJECT_SOURCE_DIR}/bench/block_lists.cc ${PROJECT_SOURCE_DIR}/bench/floor.cc ${PROJECT_SOURCE_DIR}/bench/peak_generic.cc
  ${PROJECT_SOURCE_DIR}/bench/shape.cc ${PROJECT_SOURCE_DIR}/bench/timing.cc
  ${PROJECT_SOURCE_DIR}/bench/workload.cc)
target_include_directories(tokensparse_bench
  PUBLIC ${PROJECT_SOURCE_DIR} PRIVATE ${PROJECT_SOURCE_DIR}/src)
find_package(Threads REQUIRED)
target_link_libraries(tokensparse_bench PUBLIC tokensparse::tokensparse Threads::Threads)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  foreach(isa avx2 avx512 avx512_bf16 avx512_vnni amx)
    target_sources(tokensparse_bench PRIVATE ${PROJECT_SOURCE_DIR}/bench/peak_${isa}.cc)
  endforeach()
  set_source_files_properties(${PROJECT_SOURCE_DIR}/bench/peak_avx2.cc PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mfma")
  set_source_files_properties(${PROJECT_SOURCE_DIR}/bench/peak_avx512.cc PROPERTIES
    COMPILE_OPTIONS "-mavx512f")
  set_source_files_properties(${PROJECT_SOURCE_DIR}/bench/peak_avx512_bf16.cc PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bf16")
  set_source_files_properties(${PROJECT_SOURCE_DIR}/bench/peak_avx512_vnni.cc PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512vnni")
endif()
tsp_target_defaults(tokensparse_bench)

# The script travels inside the program, so that an installed one has it too.
file(READ ${PROJECT_SOURCE_DIR}/bench/peers/torch_sdpa.py torch_sdpa_script)
configure_file(${PROJECT_SOURCE_DIR}/bench/torch_sdpa.h.in
               ${PROJECT_BINARY_DIR}/generated/bench/torch_sdpa.h @ONLY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/bench/peers/torch_sdpa.py)
target_include_directories(tokensparse_bench PRIVATE ${PROJECT_BINARY_DIR}/generated)
target_sources(tokensparse_bench PRIVATE ${PROJECT_SOURCE_DIR}/bench/torch_peer.cc)
if(TOKENSPARSE_LLAMA_CPP_DIR)
  target_sources(tokensparse_bench PRIVATE ${PROJECT_SOURCE_DIR}/bench/ggml_peer.cc)
  target_link_libraries(tokensparse_bench PRIVATE tsp_llama)
else()
  target_sources(tokensparse_bench PRIVATE ${PROJECT_SOURCE_DIR}/bench/no_ggml_peer.cc)
endif()
