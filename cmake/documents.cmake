# SPDX-License-Identifier: MIT
# The manual page and the shells' completions, made by the program from its own option table each time
# it is linked.
set(documents ${PROJECT_BINARY_DIR}/documents)
file(MAKE_DIRECTORY ${documents})
add_custom_command(TARGET tokensparse_cli POST_BUILD VERBATIM
  COMMAND tokensparse_cli manual > ${documents}/tokensparse.1
  COMMAND tokensparse_cli completion bash > ${documents}/tokensparse
  COMMAND tokensparse_cli completion zsh > ${documents}/_tokensparse
  COMMAND tokensparse_cli completion fish > ${documents}/tokensparse.fish)
install(FILES ${documents}/tokensparse.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${documents}/tokensparse
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${documents}/_tokensparse DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions)
install(FILES ${documents}/tokensparse.fish
        DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
