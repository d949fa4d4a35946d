# SPDX-License-Identifier: MIT
# Tests of the ggml adapter and of the verbs that run models.
add_library(tsp_tiny_model STATIC ggml/tiny_model.cc ggml/engine.cc)
target_include_directories(tsp_tiny_model PUBLIC ${PROJECT_SOURCE_DIR})
target_link_libraries(tsp_tiny_model PUBLIC tsp_llama)
tsp_target_defaults(tsp_tiny_model)

tsp_test(causal_mask_test SOURCES ggml/causal_mask_test.cc LIBRARIES tokensparse_ggml LABELS llama)
tsp_test(pair_count_test SOURCES ggml/pair_count_test.cc LIBRARIES tokensparse_ggml LABELS llama)
tsp_test(row_groups_test SOURCES ggml/row_groups_test.cc LIBRARIES tokensparse_ggml LABELS llama)
tsp_test(attention_node_test SOURCES ggml/attention_node_test.cc
         LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
tsp_test(adapter_test SOURCES ggml/adapter_test.cc
         LIBRARIES tokensparse_ggml tsp_tiny_model LABELS llama)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT TOKENSPARSE_SANITIZE)
  add_test(NAME panels_isolation_test COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/cpu_isolation_test.sh
           ${CMAKE_NM} ${PROJECT_BINARY_DIR}/adapters/ggml/CMakeFiles/tokensparse_ggml.dir/panels)
  set_tests_properties(panels_isolation_test PROPERTIES LABELS llama)
endif()
tsp_test(int8_linear_test SOURCES ggml/int8_linear_test.cc
         LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
tsp_test(panel_kernels_test SOURCES ggml/panel_kernels_test.cc
         LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_sources(panel_kernels_test PRIVATE ggml/kernels_amx_emulated.cc)
  get_source_file_property(amx_flags ${PROJECT_SOURCE_DIR}/adapters/ggml/panels/kernels_amx.cc
                           DIRECTORY ${PROJECT_SOURCE_DIR}/adapters/ggml COMPILE_OPTIONS)
  set_source_files_properties(ggml/kernels_amx_emulated.cc PROPERTIES COMPILE_OPTIONS "${amx_flags}")
endif()
tsp_test(norm_node_test SOURCES ggml/norm_node_test.cc
         LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
find_program(TSP_QEMU_X86_64 qemu-x86_64)
if(TSP_QEMU_X86_64 AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT TOKENSPARSE_SANITIZE)
  add_test(NAME no_panels_test COMMAND ${TSP_QEMU_X86_64} -cpu Haswell
           $<TARGET_FILE:panel_kernels_test> --gtest_filter=PanelProcessor.*)
  set_tests_properties(no_panels_test PROPERTIES
    LABELS llama PASS_REGULAR_EXPRESSION "OK \\] PanelProcessor")
endif()
tsp_test(gated_layers_test SOURCES ggml/gated_layers_test.cc
         LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
set(slow_waiting adapter_test int8_linear_test gated_layers_test)

if(TOKENSPARSE_BUILD_CLI)
  add_executable(write_tiny_model ggml/write_tiny_model.cc)
  target_link_libraries(write_tiny_model PRIVATE tsp_tiny_model)
  tsp_target_defaults(write_tiny_model)
  foreach(test run_test run_blocks_test run_linear_test run_chunks_test recommended_test sts_test)
    tsp_script_test(${test} ggml/${test}.py LABELS llama)
    set_property(TEST ${test} APPEND PROPERTY ENVIRONMENT
                 WRITE_TINY_MODEL=$<TARGET_FILE:write_tiny_model>)
  endforeach()
  tsp_test(chat_template_test SOURCES cli/chat_template_test.cc
           LIBRARIES tokensparse_cli_llama tsp_tiny_model LABELS llama)
  tsp_test(model_test SOURCES ggml/model_test.cc
           LIBRARIES tokensparse_cli_llama tsp_tiny_model LABELS model TIMEOUT 900)
  target_compile_definitions(model_test PRIVATE TSP_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  list(APPEND slow_waiting run_test run_blocks_test run_linear_test run_chunks_test recommended_test sts_test
       model_test)
endif()

# Threads of ggml that wait for each other at full speed take minutes on a machine that is shared.
set_property(TEST ${slow_waiting} APPEND PROPERTY ENVIRONMENT OMP_WAIT_POLICY=passive)

# Programs that load the plugin: they link ggml statically and export it (ENABLE_EXPORTS).
add_library(tsp_plugin_host STATIC ggml/plugin_host.cc)
target_link_libraries(tsp_plugin_host PUBLIC tsp_tiny_model GTest::gtest ${CMAKE_DL_LIBS})
target_compile_definitions(tsp_plugin_host PUBLIC TSP_PLUGIN="$<TARGET_FILE:ggml_tokensparse>")
tsp_target_defaults(tsp_plugin_host)
add_dependencies(tsp_plugin_host ggml_tokensparse)
tsp_test(host_watch_test SOURCES ggml/host_watch_test.cc LIBRARIES ggml_tokensparse_parts
         LABELS plugin)
find_package(nlohmann_json 3.11 REQUIRED)
foreach(test plugin_test plugin_load_test)
  tsp_test(${test} SOURCES ggml/${test}.cc LIBRARIES tsp_plugin_host ggml_tokensparse_parts
           LABELS plugin)
  target_link_libraries(${test} PRIVATE nlohmann_json::nlohmann_json)
  set_target_properties(${test} PROPERTIES ENABLE_EXPORTS ON)
  set_tests_properties(${test} PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
endforeach()
if(TOKENSPARSE_ONEDNN)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  tsp_test(weight_rows_test SOURCES ggml/weight_rows_test.cc
           LIBRARIES tokensparse_ggml tsp_llama LABELS llama)
  tsp_test(linear_node_test SOURCES ggml/linear_node_test.cc
           LIBRARIES tokensparse_ggml tsp_llama OpenMP::OpenMP_CXX LABELS llama)
  tsp_test(linear_model_test SOURCES ggml/linear_model_test.cc
           LIBRARIES tokensparse_ggml tsp_tiny_model LABELS llama)
  tsp_test(linear_plugin_test SOURCES ggml/linear_plugin_test.cc
           LIBRARIES tsp_plugin_host ggml_tokensparse_parts OpenMP::OpenMP_CXX LABELS plugin)
  set_target_properties(linear_plugin_test PROPERTIES ENABLE_EXPORTS ON)
  set_tests_properties(linear_node_test linear_model_test linear_plugin_test
                       PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
endif()
