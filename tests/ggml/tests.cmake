# SPDX-License-Identifier: MIT
# Tests of the ggml adapter and of the verbs that run models.
add_library(tsp_tiny_model STATIC ggml/tiny_model.cc ggml/engine.cc)
target_include_directories(tsp_tiny_model PUBLIC ${PROJECT_SOURCE_DIR})
target_link_libraries(tsp_tiny_model PUBLIC tsp_llama)
tsp_target_defaults(tsp_tiny_model)

tsp_test(causal_mask_test SOURCES ggml/causal_mask_test.cc LIBRARIES tokensparse_ggml LABELS llama)
tsp_test(row_groups_test SOURCES ggml/row_groups_test.cc LIBRARIES tokensparse_ggml LABELS llama)
tsp_test(attention_node_test SOURCES ggml/attention_node_test.cc
         LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
tsp_test(adapter_test SOURCES ggml/adapter_test.cc
         LIBRARIES tokensparse_ggml tsp_tiny_model LABELS llama)
# Threads of ggml that wait for each other at full speed take minutes on a machine that is shared.
set_tests_properties(adapter_test PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
