// Text files in a temporary folder that is gone with the object.

#ifndef MNEME_TESTS_CLIENT_TEST_FILES_H_
#define MNEME_TESTS_CLIENT_TEST_FILES_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace mneme {

class TestFiles {
 public:
  TestFiles() {
    std::string pattern = std::filesystem::temp_directory_path() / "mneme_client_test_XXXXXX";
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~TestFiles() { std::filesystem::remove_all(path_); }
  TestFiles(const TestFiles&) = delete;
  TestFiles& operator=(const TestFiles&) = delete;

  std::string path() const { return path_; }
  // Writes a file and the folders above it; returns its full path.
  std::string Write(const std::string& name, const std::string& text) const {
    const std::filesystem::path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CLIENT_TEST_FILES_H_
