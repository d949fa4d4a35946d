# SPDX-License-Identifier: MIT
# tsp_test(name SOURCES file... [LIBRARIES target...] [LABELS label...] [TIMEOUT seconds])
# One GoogleTest executable and one ctest entry. Labels pick what scripts/test runs where:
#   unit     seconds; runs in the release build and under the sanitizers
#   program  starts the program; both builds too
#   threads  runs under the thread sanitizer as well
#   slow     release build only
#   llama    needs llama.cpp; model: needs a real model besides
add_custom_target(threads_tests)  # what the tsan preset builds

function(tsp_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${name} PRIVATE tokensparse::tokensparse ${ARG_LIBRARIES}
                        GTest::gtest GTest::gtest_main)
  tsp_target_defaults(${name})
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if("threads" IN_LIST ARG_LABELS)
    add_dependencies(threads_tests ${name})
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(CMAKE_CROSSCOMPILING_EMULATOR)
    math(EXPR ARG_TIMEOUT "4 * ${ARG_TIMEOUT}")
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# tsp_script_test(name script.py LABELS label...) : unittest, with the program's path in TOKENSPARSE.
function(tsp_script_test name script)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS" ${ARGN})
  add_test(NAME ${name} COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/${script})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "TOKENSPARSE=$<TARGET_FILE:tokensparse_cli>;PYTHONDONTWRITEBYTECODE=1")
endfunction()

# tsp_fuzz(name file... [LIBRARIES target...]) : the target in a loop that is the same every time,
# as a test; with TOKENSPARSE_FUZZERS (clang only) also name_fuzz, which searches for as long as it
# is left to.
function(tsp_fuzz name)
  cmake_parse_arguments(ARG "" "" "LIBRARIES" ${ARGN})
  set(variants ${name}_fuzz_loop)
  if(TOKENSPARSE_FUZZERS)
    list(APPEND variants ${name}_fuzz)
  endif()
  foreach(target ${variants})
    add_executable(${target} ${ARG_UNPARSED_ARGUMENTS})
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${target} PRIVATE tokensparse::tokensparse ${ARG_LIBRARIES})
    tsp_target_defaults(${target})
  endforeach()
  target_sources(${name}_fuzz_loop PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/loop.cc)
  add_test(NAME ${name}_fuzz_loop COMMAND ${name}_fuzz_loop)
  set(seconds 300)
  if(CMAKE_CROSSCOMPILING_EMULATOR)
    set(seconds 1200)
  endif()
  set_tests_properties(${name}_fuzz_loop PROPERTIES LABELS unit TIMEOUT ${seconds})
  if(TOKENSPARSE_FUZZERS)
    target_compile_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
    target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
  endif()
endfunction()
