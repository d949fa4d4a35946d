# SPDX-License-Identifier: MIT
# The verbs that run models, in a library of their own so that tests reach their parts.
add_library(tokensparse_cli_llama STATIC
  llama/chat_template.cc llama/cpu.cc llama/draft_votes.cc llama/eval.cc llama/head_map.cc
  llama/interrupt.cc llama/layer_profile.cc
  llama/linear.cc llama/model.cc llama/model_run.cc llama/node_timer.cc llama/openmp_threads.cc
  llama/peak_memory.cc llama/profile.cc llama/progress.cc llama/run.cc llama/run_options.cc
  llama/run_report.cc llama/session.cc)
target_link_libraries(tokensparse_cli_llama
  PUBLIC tokensparse_cli_core tokensparse_ggml tsp_llama PRIVATE tsp_llama_jinja)
tsp_target_defaults(tokensparse_cli_llama)
target_link_libraries(tokensparse_cli PRIVATE tokensparse_cli_llama)
find_package(OpenMP REQUIRED COMPONENTS CXX)
target_link_libraries(tokensparse_cli_llama PRIVATE OpenMP::OpenMP_CXX)

add_executable(linear_bench ${PROJECT_SOURCE_DIR}/bench/linear_bench.cc)
target_link_libraries(linear_bench PRIVATE tokensparse_cli_llama tokensparse_bench)
tsp_target_defaults(linear_bench)
