# SPDX-License-Identifier: MIT
target_sources(tokensparse PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/cpu/cpu_ops.cc)
