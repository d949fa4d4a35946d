// SPDX-License-Identifier: MIT
// FlashAttention-3's forward kernel behind one C function, for attend_sm90_peers.py. Needs the
// sources of flash-attention (hopper/) and CUTLASS 4.7:
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr \
//     --expt-extended-lambda --use_fast_math -DNDEBUG -DCUTLASS_ENABLE_GDC_FOR_SM90 \
//     -Xcompiler -fPIC -shared -Iflash-attention/hopper -Icutlass/include \
//     bench/cuda/flash_attention_3.cu -o libfa3.so
#include "flash_fwd_launch_template.h"

// For sequences of a batch that differ in length; not the case here.
void prepare_varlen_num_blocks(Flash_fwd_params&, cudaStream_t, bool, int, int, bool) {}

/// Causal bf16 attention of one sequence, D 128: q and out [length, heads, D], k and v
/// [length, kv_heads, D], lse [heads, length], ticket [1].
extern "C" int fa3_attend(void* q, void* k, void* v, void* out, float* lse, int* ticket, int length,
                          int heads, int kv_heads, float scale, int num_sms, cudaStream_t stream) {
  constexpr int kHeadDim = 128;
  Flash_fwd_params p{};
  p.q_ptr = q;
  p.k_ptr = k;
  p.v_ptr = v;
  p.o_ptr = out;
  p.softmax_lse_ptr = lse;
  p.q_row_stride = p.o_row_stride = int64_t{heads} * kHeadDim;
  p.k_row_stride = p.v_row_stride = int64_t{kv_heads} * kHeadDim;
  p.q_head_stride = p.k_head_stride = p.v_head_stride = p.o_head_stride = kHeadDim;
  p.q_batch_stride = p.o_batch_stride = p.q_row_stride * length;
  p.k_batch_stride = p.v_batch_stride = p.k_row_stride * length;
  p.v_dim_stride = 1;
  p.h = heads;
  p.h_k = kv_heads;
  p.b = p.b_k = 1;
  p.seqlen_q = p.seqlen_k = p.total_q = p.total_k = length;
  p.d = p.dv = p.d_rounded = p.dv_rounded = kHeadDim;
  p.scale_softmax = scale;
  p.window_size_left = -1;
  p.is_causal = p.is_bf16 = true;
  p.num_splits = 1;
  p.tile_count_semaphore = ticket;
  p.arch = 90;
  p.num_sm = num_sms;
  if (cudaMemsetAsync(ticket, 0, sizeof(int), stream) != cudaSuccess) return 1;
  using Element = cutlass::bfloat16_t;
  run_flash_fwd<90, kHeadDim, kHeadDim, 1, Element, Element, true /* causal */, false, false, false,
                false, false, false, false, false, false>(p, stream);
  return cudaGetLastError();
}
