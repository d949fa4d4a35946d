# SPDX-License-Identifier: MIT
# nvcc, its flags in one place, and the optional headers of cuDNN.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(TOKENSPARSE_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${TOKENSPARSE_CCACHE})
endif()
enable_language(CUDA)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # the -gencode flags below say it all
# CMake 3.25 knows no C++20 flag of nvcc 13.
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
find_package(CUDAToolkit 13.0 REQUIRED)

option(TOKENSPARSE_CUDA_RACECHECK
       "Barriers of Hopper's kernels as compute-sanitizer's racecheck follows them: every lane arrives"
       OFF)
option(TOKENSPARSE_CUDA_MIN "One instance per kernel (bf16, head dim 128): a quick compile check" OFF)

# sm_80 code runs on every later chip; sm_90 is compiled for its own scheduling.
set(TSP_CUDA_FLAGS -Werror=all-warnings
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90
    -gencode=arch=compute_90,code=compute_90)
if(TOKENSPARSE_CUDA_MIN)
  set(TSP_CUDA_FLAGS -Werror=all-warnings -gencode=arch=compute_90,code=sm_90
      -Xptxas=-v)
endif()

set(TSP_CUDA_SM90_FLAGS -Werror=all-warnings -gencode=arch=compute_90a,code=sm_90a)
if(TOKENSPARSE_CUDA_MIN)
  list(APPEND TSP_CUDA_SM90_FLAGS -Xptxas=-v)
endif()
if(TOKENSPARSE_CUDA_RACECHECK)
  list(APPEND TSP_CUDA_SM90_FLAGS -DTSP_CUDA_RACECHECK)
endif()

# cuDNN: headers only. `pip install nvidia-cudnn-frontend` has the first; the second comes with
# cuDNN. The library itself is looked for when a context opens.
find_path(TOKENSPARSE_CUDNN_FRONTEND_INCLUDE cudnn_frontend.h
          DOC "Headers of cudnn-frontend; without them the build has no cuDNN")
find_path(TOKENSPARSE_CUDNN_INCLUDE cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS}
          DOC "Headers of cuDNN")
