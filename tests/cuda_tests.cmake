# SPDX-License-Identifier: MIT
# What the CUDA build adds: the device in the op tests, tests of the device's own rules, and tests
# of the parts that need no device.
find_package(CUDAToolkit 13.0 REQUIRED)
target_sources(tsp_test_support PRIVATE support/cuda_backend.cc)
target_compile_definitions(tsp_test_support PRIVATE TSP_WITH_CUDA)
target_include_directories(tsp_test_support SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(tsp_test_support PUBLIC CUDA::cudart_static)

tsp_test(cuda_device_test SOURCES cuda_device_test.cc LIBRARIES tsp_test_support)
tsp_test(cuda_open_test SOURCES cuda_open_test.cc)

if(TOKENSPARSE_CUDA_RACECHECK)
  add_executable(cuda_racecheck_probe cuda_racecheck_probe.cu)
  target_include_directories(cuda_racecheck_probe PRIVATE ${PROJECT_SOURCE_DIR}/src)
  set_target_properties(cuda_racecheck_probe PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20)
  target_compile_options(cuda_racecheck_probe PRIVATE ${TSP_CUDA_SM90_FLAGS})
endif()
