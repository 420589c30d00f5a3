# build/.../generated/mneme_version.h: version and commit, for --version and the build_info metric. The target mneme_version
# writes it anew at each build, and only when something changed, so it never goes stale and costs nothing.
set(MNEME_GENERATED_DIR ${CMAKE_BINARY_DIR}/generated)
set(write_version ${CMAKE_COMMAND} -D VERSION=${PROJECT_VERSION} -D SOURCE_DIR=${PROJECT_SOURCE_DIR}
    -D OUTPUT=${MNEME_GENERATED_DIR}/mneme_version.h -P ${PROJECT_SOURCE_DIR}/cmake/write_version.cmake)
execute_process(COMMAND ${write_version} COMMAND_ERROR_IS_FATAL ANY)
add_custom_target(mneme_version COMMAND ${write_version} BYPRODUCTS ${MNEME_GENERATED_DIR}/mneme_version.h
                  COMMENT "" VERBATIM)
