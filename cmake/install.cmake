# `cmake --install` and CPack. The relocatable tarball is laid out here (see docs/operations.md):
#   bin/                  mneme-server, mneme
#   lib/mneme/            every library they need that is not part of the C and C++ runtime of the system
#   share/mneme/models/   the bundle, found beside the program
#   share/mneme/          wire contract, deploy files
#   share/doc/mneme/      docs; licenses/ of the libraries
# The programs carry a DT_RPATH (not a RUNPATH): it also serves the libraries that the libraries need, and no LD_LIBRARY_PATH
# comes before it.
set(programs)
foreach(program mneme-server mneme)
  if(TARGET ${program})
    list(APPEND programs ${program})
    target_link_options(${program} PRIVATE -Wl,--disable-new-dtags)
    set_target_properties(${program} PROPERTIES INSTALL_RPATH "\$ORIGIN/../lib/mneme")
  endif()
endforeach()

if(programs)
  install(TARGETS ${programs} RUNTIME_DEPENDENCY_SET mneme_libraries RUNTIME DESTINATION bin)
  # Left to the system: glibc, and the runtimes of C++ and C, which are compatible upwards.
  install(RUNTIME_DEPENDENCY_SET mneme_libraries
          PRE_EXCLUDE_REGEXES "^(ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libstdc\\+\\+|libgcc_s)\\.so"
          LIBRARY DESTINATION lib/mneme)
endif()

install(DIRECTORY models/mneme-small DESTINATION share/mneme/models)
install(DIRECTORY proto/mneme DESTINATION share/mneme/proto FILES_MATCHING PATTERN "*.proto")
install(DIRECTORY deploy/ DESTINATION share/mneme/deploy USE_SOURCE_PERMISSIONS
        REGEX "/(install-deps|Dockerfile|compose\\.yaml)$" EXCLUDE)  # for the repository only
install(DIRECTORY docs/ DESTINATION share/doc/mneme/docs FILES_MATCHING PATTERN "*.md")
foreach(file README.md LICENSE)
  if(EXISTS ${PROJECT_SOURCE_DIR}/${file})
    install(FILES ${file} DESTINATION share/doc/mneme)
  endif()
endforeach()
install(SCRIPT cmake/install_licenses.cmake)

set(CPACK_GENERATOR TGZ)
set(CPACK_PACKAGE_NAME mneme)
set(CPACK_PACKAGE_VENDOR Mneme)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Long-context memory service")
string(TOLOWER ${CMAKE_SYSTEM_NAME} system)
set(CPACK_PACKAGE_FILE_NAME mneme-${PROJECT_VERSION}-${system}-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_STRIP_FILES ON)
include(CPack)
