# SPDX-License-Identifier: MIT
# The CUDA backend inside the tokensparse library.
include(${PROJECT_SOURCE_DIR}/cmake/cuda.cmake)

set(cuda_instances bf16_d128)
if(NOT TOKENSPARSE_CUDA_MIN)
  list(APPEND cuda_instances bf16_d64 f16_d64 f16_d128)
endif()
set(cuda_kernels cuda/select/select.cu cuda/select/tally.cu cuda/compress/compress.cu
                 cuda/compress/decompress.cu cuda/score/pool.cu cuda/estimate/block_sums.cu
                 cuda/estimate/choose.cu cuda/estimate/line_stats.cu cuda/estimate/lines.cu cuda/estimate/mass.cu cuda/estimate/means.cu
                 cuda/attend/leftout_rows.cu cuda/attend/poison.cu cuda/attend/vetting.cu)
set(cuda_sm90_kernels cuda/estimate/sm90/group_sums.cu cuda/select/sm90/select.cu)
if(TOKENSPARSE_CUDA_MIN)  # nobody calls it there: of all kernels it has the fewest registers to spare
  list(APPEND cuda_sm90_kernels cuda/attend/sm90/attend_bf16_d64.cu)
endif()
foreach(instance IN LISTS cuda_instances)
  list(APPEND cuda_sm90_kernels cuda/score/sm90/score_${instance}.cu
                                cuda/attend/sm90/attend_${instance}.cu
                                cuda/attend/sm90/leftout_${instance}.cu)
  list(APPEND cuda_kernels cuda/score/sm80/score_${instance}.cu
                           cuda/attend/sm80/attend_${instance}.cu
                           cuda/attend/sm80/leftout_${instance}.cu)
endforeach()

# wgmma and clusters need a target of their own, which runs on compute capability 9.0 alone.
add_library(tokensparse_sm90 OBJECT ${cuda_sm90_kernels})
target_include_directories(tokensparse_sm90 PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}
                           ${PROJECT_SOURCE_DIR}/include)
set_target_properties(tokensparse_sm90 PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20
                      CUDA_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
                      CUDA_VISIBILITY_PRESET hidden)
target_compile_options(tokensparse_sm90 PRIVATE ${TSP_CUDA_SM90_FLAGS})

target_sources(tokensparse PRIVATE
  ${cuda_kernels} $<TARGET_OBJECTS:tokensparse_sm90>
  cuda/attend/attend_op.cc cuda/attend/attend_plan.cc cuda/attend/attend_run.cc
  cuda/attend/attend_task.cc cuda/attend/cudnn_shape.cc cuda/attend/engine_cudnn.cc
  cuda/attend/engine_own.cc cuda/attend/engine_sm90.cc cuda/attend/sm90/attend_sm90_launch.cc
  cuda/compress/compress_op.cc cuda/cuda_ops.cc cuda/estimate/estimate_op.cc cuda/instances.cc cuda/prefill_op.cc
  cuda/score/score_op.cc cuda/select/select_op.cc cuda/sm90/row_map.cc cuda/state.cc)
set_target_properties(tokensparse PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20
                                             CUDA_EXTENSIONS OFF)
target_compile_definitions(tokensparse PRIVATE TSP_WITH_CUDA
  $<$<BOOL:${TOKENSPARSE_CUDA_MIN}>:TSP_CUDA_MIN>)
target_compile_options(tokensparse PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${TSP_CUDA_FLAGS}>)
target_include_directories(tokensparse SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
# The runtime is linked in: a machine without CUDA needs no file of it. The driver's library is
# found by the runtime, at run time.
target_link_libraries(tokensparse PRIVATE CUDA::cudart_static)
target_link_options(tokensparse PRIVATE
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cuda/exports.map)

if(TOKENSPARSE_CUDNN_FRONTEND_INCLUDE AND TOKENSPARSE_CUDNN_INCLUDE)
  target_sources(tokensparse PRIVATE cuda/attend/cudnn_attend.cc)
  set_source_files_properties(cuda/attend/cudnn_attend.cc PROPERTIES
    COMPILE_DEFINITIONS NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
    INCLUDE_DIRECTORIES "${TOKENSPARSE_CUDNN_FRONTEND_INCLUDE};${TOKENSPARSE_CUDNN_INCLUDE}"
    COMPILE_OPTIONS "-Wno-error;-w")
else()
  target_sources(tokensparse PRIVATE cuda/attend/cudnn_absent.cc)
endif()
