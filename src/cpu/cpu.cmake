# SPDX-License-Identifier: MIT
# The CPU backend. Each instruction set is one unit with its own flags; everything else is built for
# the machine type's baseline. Kernels are optimised in every build type: at -O0 a test would take
# minutes, and intrinsics that are not inlined prove nothing.
set(cpu_dir ${CMAKE_CURRENT_LIST_DIR})
target_sources(tokensparse PRIVATE
  core/cpu_features.cc
  cpu/cpu_ops.cc cpu/attend.cc cpu/attend_blocks.cc cpu/attend_groups.cc cpu/attend_left_out.cc
  cpu/prefill_cost.cc cpu/score.cc cpu/pool.cc cpu/select.cc
  cpu/estimate.cc cpu/estimate_rows.cc cpu/compress.cc cpu/decompress.cc cpu/kernels_scalar.cc)
# A sum of products must round twice wherever another backend rounds twice.
set_source_files_properties(cpu/select.cc PROPERTIES COMPILE_OPTIONS "-O3;-ffp-contract=off")
set_source_files_properties(cpu/pool.cc cpu/estimate.cc cpu/estimate_rows.cc cpu/kernels_scalar.cc PROPERTIES COMPILE_OPTIONS "-O3")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_property(SOURCE cpu/cpu_ops.cc APPEND PROPERTY COMPILE_DEFINITIONS TSP_CPU_X86)
  target_sources(tokensparse PRIVATE
    cpu/kernels_avx2.cc cpu/kernels_avx512.cc cpu/kernels_avx512_bf16.cc cpu/kernels_amx_bf16.cc)
  set(avx2 -O3 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 12 sees uninitialised values in its own AVX-512 header (GCC bug 105593).
    list(APPEND avx512 -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  set_source_files_properties(cpu/kernels_avx2.cc PROPERTIES COMPILE_OPTIONS "${avx2}")
  set_source_files_properties(cpu/kernels_avx512.cc PROPERTIES COMPILE_OPTIONS "${avx512}")
  set_source_files_properties(cpu/kernels_avx512_bf16.cc PROPERTIES
    COMPILE_OPTIONS "${avx512};-mavx512bf16")
  # The tile operations are assembly: no flag of their own.
  set_source_files_properties(cpu/kernels_amx_bf16.cc PROPERTIES
    COMPILE_OPTIONS "${avx512};-mavx512bf16")
  if(TOKENSPARSE_EMULATE_AMX)
    target_sources(tokensparse PRIVATE cpu/kernels_amx_emulated.cc)
    set_property(SOURCE cpu/cpu_ops.cc APPEND PROPERTY COMPILE_DEFINITIONS TSP_EMULATE_AMX)
    set_source_files_properties(cpu/kernels_amx_emulated.cc PROPERTIES
      COMPILE_OPTIONS "${avx512};-mavx512bf16")
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set_property(SOURCE cpu/cpu_ops.cc APPEND PROPERTY COMPILE_DEFINITIONS TSP_CPU_ARM64)
  target_sources(tokensparse PRIVATE cpu/kernels_neon.cc)
  set_source_files_properties(cpu/kernels_neon.cc PROPERTIES COMPILE_OPTIONS "-O3")
endif()
