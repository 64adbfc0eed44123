# Both `cmake --install` and the wheel carry the library, its headers and a CMake package; the wheel
# carries the extension module too.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# In a wheel everything lies inside the Python package, which is also the CMake prefix.
set(_prefix "")
set(_lib ${CMAKE_INSTALL_LIBDIR})
if(SKBUILD)
  set(_prefix "pagedcore/")
  set(_lib "pagedcore/lib")
endif()

install(TARGETS pagedcore EXPORT pagedcore-targets
  LIBRARY DESTINATION ${_lib} INCLUDES DESTINATION ${_prefix}include)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/pagedcore DESTINATION ${_prefix}include)

set(_package ${_lib}/cmake/pagedcore)
install(EXPORT pagedcore-targets NAMESPACE pagedcore:: DESTINATION ${_package})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cpp/pagedcore-config.cmake.in ${PROJECT_BINARY_DIR}/pagedcore-config.cmake
  INSTALL_DESTINATION ${_package}
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/pagedcore-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/pagedcore-config.cmake
  ${PROJECT_BINARY_DIR}/pagedcore-config-version.cmake
  DESTINATION ${_package})

if(PAGEDCORE_PYTHON AND SKBUILD)
  install(TARGETS _core LIBRARY DESTINATION pagedcore)
endif()
