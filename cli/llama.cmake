# SPDX-License-Identifier: MIT
# The verbs that run models, in a library of their own so that tests reach their parts.
add_library(tokensparse_cli_llama STATIC
  chat_template.cc eval.cc interrupt.cc layer_profile.cc linear.cc llama_cpu.cc llama_model.cc
  llama_session.cc model_run.cc node_timer.cc openmp_threads.cc
  peak_memory.cc profile.cc progress.cc
  run.cc run_options.cc run_report.cc)
target_link_libraries(tokensparse_cli_llama
  PUBLIC tokensparse_cli_core tokensparse_ggml tsp_llama PRIVATE tsp_llama_jinja)
tsp_target_defaults(tokensparse_cli_llama)
target_link_libraries(tokensparse_cli PRIVATE tokensparse_cli_llama)
find_package(OpenMP REQUIRED COMPONENTS CXX)
target_link_libraries(tokensparse_cli_llama PRIVATE OpenMP::OpenMP_CXX)

add_executable(linear_bench ${PROJECT_SOURCE_DIR}/bench/linear_bench.cc)
target_link_libraries(linear_bench PRIVATE tokensparse_cli_llama tokensparse_bench)
tsp_target_defaults(linear_bench)
