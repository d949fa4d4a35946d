# SPDX-License-Identifier: MIT
# tsp_test(name SOURCES file... [LIBRARIES target...] [LABELS label...] [TIMEOUT seconds])
# One GoogleTest executable and one ctest entry. Labels pick what scripts/test runs where:
#   unit     seconds; runs in the release build and under the sanitizers
#   program  starts the program; both builds too
#   threads  runs under the thread sanitizer as well
#   slow     release build only
#   llama    needs llama.cpp; model: needs a real model besides
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
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
