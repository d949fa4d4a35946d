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
