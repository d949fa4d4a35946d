/* SPDX-License-Identifier: MIT
 * Token sparse attention from C: one call, on memory that is yours. */
#include <stdio.h>
#include <stdlib.h>

#include "tokensparse/tokensparse.h"

enum { kTokens = 4096, kQueryHeads = 8, kKvHeads = 2, kDim = 64 };

static float* random_floats(int64_t count, uint32_t seed) {
  float* values = malloc((size_t)count * sizeof *values);
  if (values == NULL) abort();
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = 4.0f * (float)(seed >> 8) / (float)(1 << 24) - 2.0f;
  }
  return values;
}

static void require(tsp_status_t status) {
  if (status == TSP_OK) return;
  fprintf(stderr, "%s\n", tsp_last_error());
  exit(1);
}

int main(void) {
  float* q = random_floats((int64_t)kTokens * kQueryHeads * kDim, 1);
  float* k = random_floats((int64_t)kTokens * kKvHeads * kDim, 2);
  float* v = random_floats((int64_t)kTokens * kKvHeads * kDim, 3);
  float* out = malloc((size_t)kTokens * kQueryHeads * kDim * sizeof *out);
  int32_t kept = 0;

  /* [prefill] */
  tsp_context_options_t options;
  tsp_context_options_init(&options, sizeof options);
  tsp_context_t* ctx;
  require(tsp_context_create(&options, &ctx));

  tsp_prefill_params_t params;
  tsp_prefill_params_init(&params, sizeof params);
  params.coverage = 0.05f; /* drop tokens that hold 5 % of the attention, together */
  params.q = tsp_tensor_view(q, TSP_F32, kTokens, kQueryHeads, kDim);
  params.k = tsp_tensor_view(k, TSP_F32, kTokens, kKvHeads, kDim);
  params.v = tsp_tensor_view(v, TSP_F32, kTokens, kKvHeads, kDim);
  params.out = tsp_tensor_view(out, TSP_F32, kTokens, kQueryHeads, kDim);
  params.selected.kept = &kept; /* selected.indices would say which */

  require(tsp_prefill_workspace(ctx, &params, &params.workspace_bytes));
  params.workspace = aligned_alloc(64, (params.workspace_bytes + 63) / 64 * 64);
  require(tsp_prefill(ctx, &params));
  printf("each head kept %d of %d tokens\n", kept, kTokens);
  /* [/prefill] */

  free(params.workspace);
  tsp_context_destroy(ctx);
  free(out);
  free(v);
  free(k);
  free(q);
  return 0;
}
