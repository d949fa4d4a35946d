# SPDX-License-Identifier: MIT
# How sparse attention is asked for. Needs no ggml: the program has it without llama.cpp too.
include_guard(GLOBAL)
find_package(nlohmann_json 3.10 REQUIRED)
# The measured settings are part of the library: a plugin has no folder that it could look into.
file(GLOB measured CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/settings/*.json)
set(measured_texts "")
foreach(file ${measured})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} text)
  get_filename_component(name ${file} NAME)
  string(APPEND measured_texts "    {\"${name}\", R\"json(${text})json\"},\n")
endforeach()
configure_file(${CMAKE_CURRENT_LIST_DIR}/measured_settings.cc.in
               ${PROJECT_BINARY_DIR}/settings/measured_settings.cc @ONLY)
add_library(tokensparse_setting STATIC
  ${CMAKE_CURRENT_LIST_DIR}/block_choice.cc ${CMAKE_CURRENT_LIST_DIR}/layer_choice.cc
  ${CMAKE_CURRENT_LIST_DIR}/number_text.cc ${CMAKE_CURRENT_LIST_DIR}/setting.cc
  ${CMAKE_CURRENT_LIST_DIR}/setting_file.cc ${PROJECT_BINARY_DIR}/settings/measured_settings.cc)
target_include_directories(tokensparse_setting PUBLIC ${PROJECT_SOURCE_DIR})
set_target_properties(tokensparse_setting PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_link_libraries(tokensparse_setting
  PUBLIC tokensparse::tokensparse PRIVATE nlohmann_json::nlohmann_json)
tsp_target_defaults(tokensparse_setting)
