# SPDX-License-Identifier: MIT
# How sparse attention is asked for. Needs no ggml: the program has it without llama.cpp too.
include_guard(GLOBAL)
find_package(nlohmann_json 3.10 REQUIRED)
add_library(tokensparse_setting STATIC
  ${CMAKE_CURRENT_LIST_DIR}/block_choice.cc ${CMAKE_CURRENT_LIST_DIR}/layer_choice.cc
  ${CMAKE_CURRENT_LIST_DIR}/number_text.cc ${CMAKE_CURRENT_LIST_DIR}/setting.cc
  ${CMAKE_CURRENT_LIST_DIR}/setting_file.cc)
target_include_directories(tokensparse_setting PUBLIC ${PROJECT_SOURCE_DIR})
set_target_properties(tokensparse_setting PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_link_libraries(tokensparse_setting
  PUBLIC tokensparse::tokensparse PRIVATE nlohmann_json::nlohmann_json)
tsp_target_defaults(tokensparse_setting)
