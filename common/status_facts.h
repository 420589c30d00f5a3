// Facts that ride on a status from where an error is found to where a client is told of it, as
// payloads: nobody has to read them out of the message.

#ifndef MNEME_COMMON_STATUS_FACTS_H_
#define MNEME_COMMON_STATUS_FACTS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace mneme {

// Offset, in bytes of the document, of the byte that is wrong.
absl::Status WithByteOffset(absl::Status status, int64_t byte_offset);
std::optional<int64_t> ByteOffsetOf(const absl::Status& status);

// The disk is full, as opposed to a limit that somebody set.
absl::Status WithStorageFull(absl::Status status);
bool IsStorageFull(const absl::Status& status);

// A quota or a watermark that somebody set stands against what was asked. No field holds a newline.
struct QuotaFact {
  std::string quota;  // "text_bytes", "documents", "readers"; of a watermark: "disk", ...
  std::string scope;  // "all", "tenant default", "memory tenants/default/memories/m"
  int64_t limit = 0;
  int64_t used = 0;
  int64_t asked = 0;  // beyond what is used
  // When waiting helps: so long.
  std::optional<absl::Duration> retry_after;
  // It is what is left of a resource that runs out, not what somebody may use.
  bool is_watermark = false;
  // Of a watermark of what is free: that, and how much must be; -1: it is none.
  int64_t free = -1;
  int64_t free_needed = -1;

  friend bool operator==(const QuotaFact&, const QuotaFact&) = default;
};
absl::Status WithQuota(absl::Status status, const QuotaFact& fact);
std::optional<QuotaFact> QuotaOf(const absl::Status& status);

}  // namespace mneme

#endif  // MNEME_COMMON_STATUS_FACTS_H_
