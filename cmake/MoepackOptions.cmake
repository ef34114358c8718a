# Language, warnings and instruction-set baseline for every target.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

option(MOEPACK_DEVICE_ONLY "Build the device libraries and programs only" OFF)
option(MOEPACK_STATIC "Link the device programs statically" OFF)
option(MOEPACK_LIBRARY "Build shared libraries with C interfaces, to be installed" OFF)
option(MOEPACK_TESTS "Build tests" ON)
set(MOEPACK_TESTS_OF "" CACHE STRING "Libraries whose unit tests are built, and no other test; empty: all tests")
option(MOEPACK_FUZZ "Build libFuzzer targets (clang)" OFF)
option(MOEPACK_WERROR "Treat warnings as errors" OFF)
set(MOEPACK_SANITIZE "" CACHE STRING "Sanitizers for -fsanitize=, e.g. address,undefined or thread")

find_program(MOEPACK_CCACHE ccache)
if(MOEPACK_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${MOEPACK_CCACHE})
endif()

add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers)
# GCC 12 reports std::string operator+ falsely (PR 105329) and takes an enumerator of an enum class for one that shadows a
# namespace's constant of the same name; =local keeps the rest of -Wshadow.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-Wno-restrict -Wno-shadow -Wshadow=local)
endif()
if(MOEPACK_WERROR)
  add_compile_options(-Werror)
endif()
# One baseline for all cloud tools, so that float results are the same on every x86-64-v3 processor. Kernels that need
# more are compiled file by file and chosen at run time. Contraction is off so that a*b+c means the same everywhere.
add_compile_options(-ffp-contract=off)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT MOEPACK_DEVICE_ONLY)
  add_compile_options(-march=x86-64-v3)
endif()
if(MOEPACK_SANITIZE)
  # vptr needs type information, which the device libraries do not have.
  add_compile_options(-fsanitize=${MOEPACK_SANITIZE} -fno-sanitize=vptr -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${MOEPACK_SANITIZE})
  # GCC's manual: sanitizers make it take initialised variables for uninitialised ones.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-Wno-maybe-uninitialized)
  endif()
endif()
if(MOEPACK_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)  # coverage of the libraries guides the fuzzer
endif()
if(MOEPACK_STATIC)
  # Device programs are small: what nothing calls is left out.
  add_compile_options(-ffunction-sections -fdata-sections)
  add_link_options(-Wl,--gc-sections)
endif()
if(MOEPACK_LIBRARY)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
  # What a version script makes local needs no room for other definitions of it.
  add_compile_options(-ffunction-sections -fdata-sections -fno-semantic-interposition -fvisibility-inlines-hidden)
endif()
include_directories(${CMAKE_SOURCE_DIR})
find_package(Threads REQUIRED)
link_libraries(Threads::Threads)
