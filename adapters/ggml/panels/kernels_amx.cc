// SPDX-License-Identifier: MIT
// Built with flags of its own: includes no header with inline functions of linkage, which another
// unit might end up calling.
#include "src/cpu/amx.h"
// After the tile operations.
#include "adapters/ggml/panels/amx_tables-inl.h"

namespace tsp::ggml_adapter::panels {

extern const Kernels kAmxInt8, kAmxBf16;
const Kernels kAmxInt8 = amx_int8_table("AMX-INT8");
const Kernels kAmxBf16 = amx_bf16_table("AMX-BF16");

}  // namespace tsp::ggml_adapter::panels
