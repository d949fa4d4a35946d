# SPDX-License-Identifier: MIT
# `cmake --install`: headers, the shared library, find_package(tokensparse) and pkg-config.
include(CMakePackageConfigHelpers)

install(TARGETS tokensparse EXPORT tokensparse-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/tokensparse
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(DIRECTORY ${PROJECT_SOURCE_DIR}/settings DESTINATION ${CMAKE_INSTALL_DATADIR}/tokensparse
        FILES_MATCHING PATTERN "*.json")
install(FILES ${PROJECT_BINARY_DIR}/include/tokensparse/version.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tokensparse)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tokensparse)
install(EXPORT tokensparse-targets NAMESPACE tokensparse:: DESTINATION ${package_dir})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/tokensparse-config.cmake.in
                              ${PROJECT_BINARY_DIR}/tokensparse-config.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tokensparse-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tokensparse-config.cmake
              ${PROJECT_BINARY_DIR}/tokensparse-config-version.cmake DESTINATION ${package_dir})

# Relative to the .pc file, so that `cmake --install --prefix` and moving the tree both work.
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${PROJECT_SOURCE_DIR}/cmake/tokensparse.pc.in ${PROJECT_BINARY_DIR}/tokensparse.pc
               @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/tokensparse.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
