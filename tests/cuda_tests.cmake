# SPDX-License-Identifier: MIT
# What the CUDA build adds: the device in the op tests, tests of the device's own rules, and tests
# of the parts that need no device.
include(${PROJECT_SOURCE_DIR}/cmake/cuda.cmake)
target_sources(tsp_test_support PRIVATE support/cuda_backend.cc)
target_compile_definitions(tsp_test_support PRIVATE TSP_WITH_CUDA)
target_include_directories(tsp_test_support SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(tsp_test_support PUBLIC CUDA::cudart_static)

tsp_test(cuda_device_test SOURCES cuda_device_test.cc LIBRARIES tsp_test_support)
tsp_test(cuda_attend_test SOURCES cuda_attend_test.cc LIBRARIES tsp_test_support)
tsp_test(cuda_open_test SOURCES cuda_open_test.cc)

# Hopper's attention alone, against plain f32 loops, and its timing: for scripts/gpu-check.
if(NOT TOKENSPARSE_CUDA_MIN)
  set(attend_sm90_root ${PROJECT_SOURCE_DIR}/bench/cuda)
  add_executable(attend_sm90_bench ${attend_sm90_root}/attend_sm90_bench.cc
    ${attend_sm90_root}/attend_sm90_reference.cu $<TARGET_OBJECTS:tokensparse_sm90>
    ${PROJECT_SOURCE_DIR}/src/cuda/attend/sm90/attend_sm90_launch.cc
    ${PROJECT_SOURCE_DIR}/src/cuda/sm90/row_map.cc
    ${PROJECT_SOURCE_DIR}/src/core/error.cc)
  target_include_directories(attend_sm90_bench PRIVATE ${PROJECT_SOURCE_DIR}/src
    ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(attend_sm90_bench PRIVATE CUDA::cudart_static)
  set_target_properties(attend_sm90_bench PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20
                        CXX_STANDARD 20)
  target_compile_options(attend_sm90_bench PRIVATE
                         $<$<COMPILE_LANGUAGE:CUDA>:${TSP_CUDA_SM90_FLAGS}>)
endif()

if(TOKENSPARSE_CUDA_RACECHECK)
  add_executable(cuda_racecheck_probe cuda_racecheck_probe.cu)
  target_include_directories(cuda_racecheck_probe PRIVATE ${PROJECT_SOURCE_DIR}/src)
  set_target_properties(cuda_racecheck_probe PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20)
  target_compile_options(cuda_racecheck_probe PRIVATE ${TSP_CUDA_SM90_FLAGS})
endif()
