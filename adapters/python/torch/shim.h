// SPDX-License-Identifier: MIT
/// \file shim.h
/// torch's stable C functions (2.10 and up), found in the torch that is loaded. Declared here, so
/// that the wheel is built without torch and serves every version that has them; their meaning
/// stands in torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h.
#ifndef TOKENSPARSE_ADAPTERS_PYTHON_TORCH_SHIM_H_
#define TOKENSPARSE_ADAPTERS_PYTHON_TORCH_SHIM_H_

#include <cstddef>
#include <cstdint>

namespace tsp_torch {

struct TensorObject;
struct StringObject;
struct LibraryObject;
using TensorHandle = TensorObject*;
using StringHandle = StringObject*;
using LibraryHandle = LibraryObject*;
/// An argument or a result: a handle, a double or an int64 by its bits.
using Value = uint64_t;
using Kernel = void (*)(Value* stack, uint64_t num_arguments, uint64_t num_results);

/// The torch version whose conventions this code follows, as torch encodes it: 2.10.
constexpr uint64_t kTorchVersion = 0x020a000000000000;

/// Every function but the plain getters of a number returns 0 when all went well.
struct Shim {
  int32_t (*delete_tensor)(TensorHandle);
  int32_t (*data_ptr)(TensorHandle, void** borrowed);
  int32_t (*dim)(TensorHandle, int64_t*);
  int32_t (*sizes)(TensorHandle, int64_t** borrowed);
  int32_t (*strides)(TensorHandle, int64_t** borrowed);
  int32_t (*dtype)(TensorHandle, int32_t*);
  int32_t (*layout)(TensorHandle, int32_t*);
  int32_t (*device_type)(TensorHandle, int32_t*);
  int32_t (*device_index)(TensorHandle, int32_t*);
  int32_t (*empty_strided)(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                           int32_t device_type, int32_t device_index, TensorHandle* owned);
  int32_t (*zero)(TensorHandle);
  int32_t (*string_c_str)(StringHandle, const char** borrowed);
  int32_t (*delete_string)(StringHandle);
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain,
                          void (*fn)(int64_t begin, int64_t end, void* arg), void* arg);
  int32_t (*num_threads)(uint32_t*);
  int32_t (*library_def)(const char* ns, const char* file, uint32_t line, LibraryHandle* owned);
  int32_t (*library_impl_for)(const char* ns, const char* key, const char* file, uint32_t line,
                              LibraryHandle* owned);
  int32_t (*define)(LibraryHandle, const char* schema);
  int32_t (*implement)(LibraryHandle, const char* name, Kernel, uint64_t torch_version);
  int32_t (*cuda_stream)(int32_t device, void** stream);  ///< null in a torch without CUDA

  int32_t cpu, cuda;                     ///< device types
  int32_t f32, f16, bf16, int32, uint8;  ///< dtypes
  int32_t strided;                       ///< layout
};

/// Finds the functions in an open libtorch.so. Returns the name of the first that is missing, or
/// null.
const char* find_shim(void* libtorch, Shim* shim);

}  // namespace tsp_torch
#endif  // TOKENSPARSE_ADAPTERS_PYTHON_TORCH_SHIM_H_
