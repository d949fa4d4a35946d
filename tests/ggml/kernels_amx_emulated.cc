// SPDX-License-Identifier: MIT
// The AMX kernels of linear layers on emulated tiles, for processors that have none. Built with the
// flags of kernels_amx.cc.
#include "src/cpu/amx_emulated.h"
// After the tile operations.
#include "adapters/ggml/panels/amx_tables-inl.h"

namespace tsp::ggml_adapter::panels {

extern const Kernels kAmxInt8Emulated, kAmxBf16Emulated;
const Kernels kAmxInt8Emulated = amx_int8_table("AMX-INT8-emulated");
const Kernels kAmxBf16Emulated = amx_bf16_table("AMX-BF16-emulated");

}  // namespace tsp::ggml_adapter::panels
