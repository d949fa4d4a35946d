# SPDX-License-Identifier: MIT
# Warnings and sanitizers of every target that is ours.
function(tsp_target_defaults target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wpedantic -Werror -Wshadow>
    $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>)
  if(TOKENSPARSE_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:C,CXX>:-O1 -fsanitize=${TOKENSPARSE_SANITIZE} -fno-sanitize-recover=all
        -fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${TOKENSPARSE_SANITIZE})
  endif()
endfunction()
