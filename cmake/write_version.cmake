# cmake -D VERSION= -D SOURCE_DIR= -D OUTPUT= -P write_version.cmake: writes mneme_version.h; see version.cmake.
execute_process(
  COMMAND git -c safe.directory=* --no-optional-locks -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE result)
if(NOT result EQUAL 0 OR NOT commit)
  set(commit "unknown")
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [[// Written by cmake/write_version.cmake.
#ifndef MNEME_VERSION_H_
#define MNEME_VERSION_H_
inline constexpr char kMnemeVersion[] = "@VERSION@";
inline constexpr char kMnemeCommit[] = "@commit@";
#endif  // MNEME_VERSION_H_
]])
