# build/.../generated/mneme_version.h: version and commit, for --version and the build_info metric.
execute_process(COMMAND git rev-parse --short=12 HEAD WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
                OUTPUT_VARIABLE MNEME_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT MNEME_COMMIT)
  set(MNEME_COMMIT "unknown")
endif()
set(MNEME_GENERATED_DIR ${CMAKE_BINARY_DIR}/generated)
configure_file(${PROJECT_SOURCE_DIR}/cmake/mneme_version.h.in ${MNEME_GENERATED_DIR}/mneme_version.h @ONLY)
