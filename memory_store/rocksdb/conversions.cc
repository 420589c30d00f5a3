#include "memory_store/rocksdb/conversions.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_facts.h"

namespace mneme {

absl::Status ToStatus(const rocksdb::Status& status, absl::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit)
    return WithStorageFull(absl::ResourceExhaustedError(message));
  if (status.IsNotFound()) return absl::NotFoundError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  return absl::InternalError(message);
}

}  // namespace mneme
