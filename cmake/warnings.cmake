# SPDX-License-Identifier: MIT
# Warnings and sanitizers of every target that is ours.
function(tsp_target_defaults target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wpedantic -Werror -Wshadow>
    $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>
    # g++ 12 sees overlapping copies in harmless string concatenations (its bug 105651).
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
  if(TOKENSPARSE_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:C,CXX>:-O1 -fsanitize=${TOKENSPARSE_SANITIZE} -fno-sanitize-recover=all
        -fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${TOKENSPARSE_SANITIZE})
  endif()
  if(TOKENSPARSE_FUZZERS)  # so that a fuzzer sees which of our code an input reached
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
  endif()
endfunction()
