# Both `cmake --install` and the wheel carry the library, its headers and a CMake package.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# In a wheel everything lies inside the Python package, which is also the CMake prefix.
set(_prefix "")
set(_lib ${CMAKE_INSTALL_LIBDIR})
if(SKBUILD)
  set(_prefix "pagedcore/")
  set(_lib lib)
endif()

install(TARGETS pagedcore EXPORT pagedcore-targets
  LIBRARY DESTINATION ${_prefix}${_lib} RUNTIME DESTINATION ${_prefix}bin)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/pagedcore DESTINATION ${_prefix}include)
install(EXPORT pagedcore-targets NAMESPACE pagedcore::
  DESTINATION ${_prefix}${_lib}/cmake/pagedcore)
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/pagedcore-config-version.cmake COMPATIBILITY SameMinorVersion)
file(WRITE ${PROJECT_BINARY_DIR}/pagedcore-config.cmake
  "include(\${CMAKE_CURRENT_LIST_DIR}/pagedcore-targets.cmake)\n")
install(FILES
  ${PROJECT_BINARY_DIR}/pagedcore-config.cmake
  ${PROJECT_BINARY_DIR}/pagedcore-config-version.cmake
  DESTINATION ${_prefix}${_lib}/cmake/pagedcore)
if(PAGEDCORE_PYTHON)
  install(TARGETS _core LIBRARY DESTINATION pagedcore)
endif()
