// Facts that ride on a status from where an error is found to where a client is told of it, as
// payloads: nobody has to read them out of the message.

#ifndef MNEME_COMMON_STATUS_FACTS_H_
#define MNEME_COMMON_STATUS_FACTS_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"

namespace mneme {

// Offset, in bytes of the document, of the byte that is wrong.
absl::Status WithByteOffset(absl::Status status, int64_t byte_offset);
std::optional<int64_t> ByteOffsetOf(const absl::Status& status);

// The disk is full, as opposed to a limit that somebody set.
absl::Status WithStorageFull(absl::Status status);
bool IsStorageFull(const absl::Status& status);

}  // namespace mneme

#endif  // MNEME_COMMON_STATUS_FACTS_H_
