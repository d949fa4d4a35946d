// SPDX-License-Identifier: MIT
#include "shim.h"

#include <dlfcn.h>

namespace tsp_torch {
namespace {

template <typename Function>
bool find(void* library, const char* name, Function*& slot) {
  slot = reinterpret_cast<Function*>(dlsym(library, name));
  return slot != nullptr;
}

bool number(void* library, const char* name, int32_t* slot) {
  int32_t (*get)() = nullptr;
  if (!find(library, name, get)) return false;
  *slot = get();
  return true;
}

}  // namespace

const char* find_shim(void* libtorch, Shim* s) {
  const char* name = nullptr;
  const auto missing = [&](const char* symbol, auto& slot) {
    name = symbol;
    return !find(libtorch, symbol, slot);
  };
  const auto no_number = [&](const char* symbol, int32_t& slot) {
    name = symbol;
    return !number(libtorch, symbol, &slot);
  };
  if (missing("aoti_torch_delete_tensor_object", s->delete_tensor) ||
      missing("aoti_torch_get_data_ptr", s->data_ptr) || missing("aoti_torch_get_dim", s->dim) ||
      missing("aoti_torch_get_sizes", s->sizes) || missing("aoti_torch_get_strides", s->strides) ||
      missing("aoti_torch_get_dtype", s->dtype) || missing("aoti_torch_get_layout", s->layout) ||
      missing("aoti_torch_get_device_type", s->device_type) ||
      missing("aoti_torch_get_device_index", s->device_index) ||
      missing("aoti_torch_empty_strided", s->empty_strided) ||
      missing("aoti_torch_zero_", s->zero) || missing("torch_string_c_str", s->string_c_str) ||
      missing("torch_delete_string", s->delete_string) ||
      missing("torch_parallel_for", s->parallel_for) ||
      missing("torch_get_num_threads", s->num_threads) ||
      missing("aoti_torch_library_init_def", s->library_def) ||
      missing("aoti_torch_library_init_impl", s->library_impl_for) ||
      missing("aoti_torch_library_def", s->define) || missing("torch_library_impl", s->implement) ||
      no_number("aoti_torch_device_type_cpu", s->cpu) ||
      no_number("aoti_torch_device_type_cuda", s->cuda) ||
      no_number("aoti_torch_dtype_float32", s->f32) ||
      no_number("aoti_torch_dtype_float16", s->f16) ||
      no_number("aoti_torch_dtype_bfloat16", s->bf16) ||
      no_number("aoti_torch_dtype_int32", s->int32) ||
      no_number("aoti_torch_dtype_uint8", s->uint8) ||
      no_number("aoti_torch_layout_strided", s->strided)) {
    return name;
  }
  find(libtorch, "aoti_torch_get_current_cuda_stream", s->cuda_stream);
  return nullptr;
}

}  // namespace tsp_torch
