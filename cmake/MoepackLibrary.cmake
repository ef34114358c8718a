# Preset `library`: shared libraries that export a C interface and nothing else, and how they are installed: header, library,
# pkg-config file, CMake package. An installed folder may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(moepack_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moepack)

# moepack_c_library(NAME OBJECTS_OF ours LINK ours... HEADER header): libmoepack-NAME.so from the objects of one of our
# libraries and what that links. The header says the ABI version, which is the soname's, in MOEPACK_<NAME>_ABI_VERSION, and
# declares what is exported.
function(moepack_c_library name)
  cmake_parse_arguments(ARG "" "OBJECTS_OF;HEADER" "LINK" ${ARGN})
  set(header ${CMAKE_SOURCE_DIR}/${ARG_HEADER})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${header})
  file(STRINGS ${header} version_line REGEX "^#define MOEPACK_[A-Z]+_ABI_VERSION [0-9]+$")
  string(REGEX MATCH "[0-9]+$" abi "${version_line}")
  file(STRINGS ${header} declarations REGEX "^[a-z].* \\**moepack_[a-z_]+\\(")
  set(exports)
  foreach(line IN LISTS declarations)
    string(REGEX REPLACE ".*[ *](moepack_[a-z_]+)\\(.*" "\\1" function "${line}")
    string(APPEND exports " ${function};")
  endforeach()
  string(TOUPPER ${name} tag)
  set(map ${CMAKE_BINARY_DIR}/moepack-${name}.map)
  file(CONFIGURE OUTPUT ${map} CONTENT "MOEPACK_${tag}_${abi} { global:${exports} local: *; };\n")

  set(target moepack_${name}_shared)
  add_library(${target} SHARED $<TARGET_OBJECTS:moepack_${ARG_OBJECTS_OF}>)
  list(TRANSFORM ARG_LINK PREPEND moepack_)
  target_link_libraries(${target} PRIVATE ${ARG_LINK})
  target_link_options(${target} PRIVATE -Wl,--version-script=${map} -Wl,--gc-sections -Wl,--as-needed -Wl,-z,defs)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME moepack-${name} EXPORT_NAME ${name} LINK_DEPENDS ${map}
    VERSION ${abi}.${PROJECT_VERSION} SOVERSION ${abi} LINKER_LANGUAGE CXX)
  set_property(TARGET ${target} PROPERTY INTERFACE_LINK_LIBRARIES "")  # who links the library needs none of its own
  target_include_directories(${target} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  install(TARGETS ${target} EXPORT moepackTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/moepack)

  file(RELATIVE_PATH to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" to_prefix ${to_prefix})
  configure_file(${CMAKE_SOURCE_DIR}/cmake/moepack.pc.in moepack-${name}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moepack-${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

moepack_c_library(runtime OBJECTS_OF runtime_c LINK runtime trust_json HEADER runtime-min/moepack_runtime_c.h)
moepack_c_library(verify OBJECTS_OF verify LINK verify HEADER verify/moepack_verify_c.h)

install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(EXPORT moepackTargets NAMESPACE moepack:: DESTINATION ${moepack_package_dir})
configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/moepackConfig.cmake.in moepackConfig.cmake
  INSTALL_DESTINATION ${moepack_package_dir})
write_basic_package_version_file(moepackConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moepackConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/moepackConfigVersion.cmake
  DESTINATION ${moepack_package_dir})
