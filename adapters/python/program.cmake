# SPDX-License-Identifier: MIT
# The program in the wheel: in a folder with OpenMP's library; the plugin and libtokensparse.so are one
# above.
add_custom_target(python_program ALL DEPENDS tokensparse_cli ggml_tokensparse)
set_target_properties(tokensparse_cli PROPERTIES INSTALL_RPATH "$ORIGIN/..:$ORIGIN")
install(TARGETS ggml_tokensparse LIBRARY DESTINATION tokensparse COMPONENT python)
install(TARGETS tokensparse_cli RUNTIME DESTINATION tokensparse/bin COMPONENT python)

execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libgomp.so.1
                OUTPUT_VARIABLE openmp OUTPUT_STRIP_TRAILING_WHITESPACE)
file(REAL_PATH ${openmp} openmp)
install(PROGRAMS ${openmp} DESTINATION tokensparse/bin RENAME libgomp.so.1 COMPONENT python)

set(licenses ${TOKENSPARSE_LLAMA_CPP_DIR}/LICENSE llama.cpp
    /usr/share/doc/libcli11-dev/copyright cli11 /usr/share/doc/nlohmann-json3-dev/copyright json
    /usr/share/doc/libgomp1/copyright libgomp)
while(licenses)
  list(POP_FRONT licenses file name)
  install(FILES ${file} DESTINATION tokensparse/licenses RENAME ${name} COMPONENT python OPTIONAL)
endwhile()
