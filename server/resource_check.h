// Checks of resource names that every handler makes first: form, then tenant.

#ifndef MNEME_SERVER_RESOURCE_CHECK_H_
#define MNEME_SERVER_RESOURCE_CHECK_H_

#include <string>
#include <vector>

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/repeated_field.h>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "mneme/v1/mneme.pb.h"

namespace mneme {

// Immutable; thread-safe.
class ResourceCheck {
 public:
  // `tenants`: those that exist.
  explicit ResourceCheck(const std::vector<std::string>& tenants);

  // INVALID_ARGUMENT: `field` is not a name of that form; NOT_FOUND: its tenant does not exist.
  absl::StatusOr<ResourceName> Tenant(absl::string_view field, absl::string_view name) const;
  absl::StatusOr<ResourceName> Memory(absl::string_view field, absl::string_view name) const;
  absl::StatusOr<ResourceName> Document(absl::string_view field, absl::string_view name) const;

  // The memories a question reads: at least `min`, at most `max`, of one tenant; a name given twice
  // counts once.
  absl::StatusOr<std::vector<std::string>> Memories(
      const google::protobuf::RepeatedPtrField<std::string>& names, int min, int max) const;
  // A time to live: infinite when not set. INVALID_ARGUMENT: not above 0, or over 100 years.
  static absl::StatusOr<absl::Duration> Ttl(absl::string_view field, bool is_set,
                                            const google::protobuf::Duration& ttl);
  absl::StatusOr<std::vector<ReadBarrier>> Barriers(
      const google::protobuf::RepeatedPtrField<v1::ReadBarrier>& barriers) const;

 private:
  absl::StatusOr<ResourceName> Check(absl::StatusOr<ResourceName> parsed, absl::string_view field,
                                     absl::string_view name) const;

  const absl::flat_hash_set<std::string> tenants_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_RESOURCE_CHECK_H_
