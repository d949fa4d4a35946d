# SPDX-License-Identifier: MIT
# ccache where it is installed: a second build of llama.cpp or the kernels takes seconds.
find_program(TOKENSPARSE_CCACHE ccache)
mark_as_advanced(TOKENSPARSE_CCACHE)
if(TOKENSPARSE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${TOKENSPARSE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TOKENSPARSE_CCACHE})
endif()
