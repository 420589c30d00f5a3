// For tests of forgetting: looks for bytes in every file below a folder.

#ifndef MNEME_TESTS_MEMORY_STORE_FILE_SEARCH_H_
#define MNEME_TESTS_MEMORY_STORE_FILE_SEARCH_H_

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme {

// Those of `markers` that stand in some file below `folder`, as they are. Files may go meanwhile.
inline std::vector<std::string> MarkersOnDisk(const std::string& folder,
                                              const std::vector<std::string>& markers) {
  std::vector<bool> found(markers.size());
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    if (it->is_regular_file(error)) files.push_back(it->path());
  }
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    for (size_t i = 0; i < markers.size(); ++i) {
      if (found[i]) continue;
      const std::boyer_moore_horspool_searcher searcher(markers[i].begin(), markers[i].end());
      found[i] = std::search(bytes.begin(), bytes.end(), searcher) != bytes.end();
    }
  }
  std::vector<std::string> present;
  for (size_t i = 0; i < markers.size(); ++i) {
    if (found[i]) present.push_back(markers[i]);
  }
  return present;
}

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_FILE_SEARCH_H_
