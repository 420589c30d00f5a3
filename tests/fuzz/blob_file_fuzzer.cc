// Blob files of any bytes: keys, or an error.

#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "memory_store/record_coding.h"
#include "memory_store/rocksdb/blob_file.h"
#include "tests/fuzz/fuzz_target.h"

namespace mneme {
namespace {

std::string BlobFile(const std::vector<std::string>& keys, size_t value_bytes) {
  std::string file;
  PutU32(&file, 2395959);  // magic
  PutU32(&file, 1);        // version
  file.resize(30);
  for (const std::string& key : keys) {
    PutU64(&file, key.size());
    PutU64(&file, value_bytes);
    file.resize(file.size() + 16);
    file += key + std::string(value_bytes, 'v');
  }
  return file + std::string(32, 'f');
}

std::vector<std::string> BlobFileSeeds() {
  return {BlobFile({}, 0), BlobFile({"a", "bc"}, 10), BlobFile({std::string(28, 'k')}, 300)};
}

MNEME_FUZZ_TARGET(BlobFile, BlobFileSeeds) {
  const int fd = memfd_create("blob", MFD_CLOEXEC);
  MNEME_CHECK(fd >= 0);
  MNEME_CHECK(write(fd, input.data(), input.size()) == static_cast<ssize_t>(input.size()));
  size_t key_bytes = 0;
  const absl::Status status =
      ReadBlobFileKeys(absl::StrCat("/proc/self/fd/", fd),
                       [&key_bytes](absl::string_view key) { key_bytes += key.size(); });
  close(fd);
  MNEME_CHECK(status.ok() || absl::IsDataLoss(status));
  MNEME_CHECK(key_bytes <= input.size());
}

}  // namespace
}  // namespace mneme
