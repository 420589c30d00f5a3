// The order of keys of a ChunkStore: bytes.

#ifndef MNEME_MEMORY_STORE_KEY_AFTER_H_
#define MNEME_MEMORY_STORE_KEY_AFTER_H_

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace mneme {

// The smallest key that is greater than `key`.
inline std::string KeyAfter(absl::string_view key) {
  return absl::StrCat(key, absl::string_view("\0", 1));
}

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_KEY_AFTER_H_
