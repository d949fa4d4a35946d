# SPDX-License-Identifier: MIT
# `cpack` in a build with GGML_NATIVE=OFF and prefix /usr makes the .deb; scripts/package
# does all of it.
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME copyright)
# Header-only libraries that are compiled in: their licences ask to be named.
foreach(package libcli11-dev nlohmann-json3-dev)
  install(FILES /usr/share/doc/${package}/copyright DESTINATION ${CMAKE_INSTALL_DOCDIR}
          RENAME copyright.${package} OPTIONAL)
endforeach()
if(TOKENSPARSE_LLAMA_CPP_DIR)
  install(FILES ${TOKENSPARSE_LLAMA_CPP_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR}
          RENAME copyright.llama.cpp)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME tokensparse)
set(CPACK_PACKAGE_CONTACT "The tokensparse authors <tokensparse@example.org>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${PROJECT_BINARY_DIR}/src)
include(CPack)
